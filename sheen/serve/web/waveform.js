// The waveform of what came, and how much of it was heard. Owns the canvas.

const BINS_PER_S = 100;
const BAR_PX = 3; // with its gap

class Waveform {
  constructor(canvas) {
    this.canvas = canvas;
    this.reset(0);
    const redraw = () => this.draw(this.heard);
    new ResizeObserver(redraw).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  // `expected`: how many seconds will come, about: the scale until it is known.
  reset(expected) {
    this.expected = expected;
    this.seconds = 0;
    this.heard = 0;
    this.peaks = []; // of every hundredth of a second
    this.canvas.setAttribute("aria-label", "Waveform: nothing yet");
    this.draw(0);
  }

  add(samples, rate) {
    for (const sample of samples) {
      const bin = Math.floor(this.seconds * BINS_PER_S);
      this.peaks[bin] = Math.max(this.peaks[bin] ?? 0, Math.abs(sample));
      this.seconds += 1 / rate;
    }
  }

  // All is there.
  complete() {
    this.expected = 0;
    this.canvas.setAttribute("aria-label", `Waveform of ${this.seconds.toFixed(1)} seconds`);
  }

  get scale() {
    return Math.max(this.expected, this.seconds);
  }

  draw(heard) {
    this.heard = heard;
    const { canvas } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const [inside, outside] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== inside || canvas.height !== outside) Object.assign(canvas, { width: inside, height: outside });
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const colours = getComputedStyle(canvas);
    const bars = Math.floor(width / BAR_PX);
    const binsPerBar = (this.scale * BINS_PER_S) / bars;
    for (let bar = 0; bar < bars; bar += 1) {
      const begin = Math.floor(bar * binsPerBar);
      const end = Math.max(begin + 1, Math.floor((bar + 1) * binsPerBar));
      const peak = Math.max(0, ...this.peaks.slice(begin, end));
      const tall = Math.max(1, Math.min(1, peak) * height);
      const past = begin / BINS_PER_S < heard;
      pen.fillStyle = colours.getPropertyValue(begin < this.peaks.length ? (past ? "--accent" : "--wave") : "--line");
      pen.fillRect(bar * BAR_PX, (height - tall) / 2, BAR_PX - 1, tall);
    }
  }
}
