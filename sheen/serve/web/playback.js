"use strict";

// Playback: the bytes of a format in, sound out. Owns the players and what is audible; knows
// nothing of HTTP or of what the page shows.
//
// A player is made while a key or button is pressed: browsers let nothing else begin a sound.
// `push(bytes)` as they come, then `await finish(blob)`, after which all samples are known; `ended`
// resolves when the last was heard and rejects when it cannot be played; `stop()` is silence at
// once. It calls `listener.samples(samples, rate)` and `listener.heard(time)`, the time, of
// performance.now(), of the first audible sample; again if it learns more exactly.

const AUDIBLE = 0.01; // of full scale: what the load tool calls audible too
const LEAD_S = 0.05; // between what is scheduled and what sounds
const RATE = 24000; // Hz, unless the server says otherwise

const MEDIA_TYPES = {
  mp3: "audio/mpeg",
  opus: "audio/ogg",
  aac: "audio/aac",
  flac: "audio/flac",
  wav: "audio/wav",
  pcm: "audio/pcm",
};
const MediaSourceKind = window.ManagedMediaSource ?? window.MediaSource; // the first is the iPhone's

const isPcm = (format) => format === "pcm" || format === "wav";
const isMedia = (format) => !isPcm(format) && Boolean(MediaSourceKind?.isTypeSupported(MEDIA_TYPES[format]));
const playsAsItComes = (format) => isPcm(format) || isMedia(format);

function makePlayer(format, context, listener) {
  if (isPcm(format)) return new PcmPlayer(context, listener, format === "wav");
  if (isMedia(format)) return new MediaPlayer(context, listener, MEDIA_TYPES[format]);
  return new WholePlayer(context, listener);
}

const once = (target, name) => new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));
const firstAudible = (samples) => samples.findIndex((sample) => Math.abs(sample) >= AUDIBLE);

// Decoded at the context's rate: [samples, rate].
async function decoded(context, blob) {
  try {
    const buffer = await context.decodeAudioData(await blob.arrayBuffer());
    return [buffer.getChannelData(0), buffer.sampleRate];
  } catch (error) {
    throw new Error("This browser cannot decode the format; the download has what was received.", { cause: error });
  }
}

// 16-bit mono PCM, with or without a WAV header, cut anywhere, to samples.
class PcmReader {
  constructor(hasHeader) {
    this.rate = RATE;
    this.inHeader = hasHeader;
    this.left = Infinity; // bytes of the data chunk
    this.rest = new Uint8Array();
  }

  push(bytes) {
    let data = new Uint8Array(this.rest.length + bytes.length);
    data.set(this.rest);
    data.set(bytes, this.rest.length);
    if (this.inHeader) {
      const begin = this.readHeader(data, new DataView(data.buffer));
      if (begin === null) {
        this.rest = data;
        return new Float32Array();
      }
      this.inHeader = false;
      data = data.subarray(begin);
    }
    data = data.subarray(0, this.left);
    const whole = data.length - (data.length % 2);
    this.left -= whole;
    this.rest = data.slice(whole);
    const view = new DataView(data.buffer, data.byteOffset, whole);
    return Float32Array.from({ length: whole / 2 }, (_, i) => view.getInt16(2 * i, true) / 32767);
  }

  // Where the samples begin; null while more of the header must come.
  readHeader(data, view) {
    const name = (at) => String.fromCharCode(...data.subarray(at, at + 4));
    if (data.length < 12) return null;
    if (name(0) !== "RIFF" || name(8) !== "WAVE") throw new Error("What came is not a WAV file.");
    for (let at = 12; at + 8 <= data.length; ) {
      const size = view.getUint32(at + 4, true);
      if (name(at) === "data") {
        this.left = size;
        return at + 8;
      }
      if (name(at) === "fmt ") {
        if (at + 24 > data.length) return null;
        const [coding, channels, bits] = [8, 10, 22].map((offset) => view.getUint16(at + offset, true));
        if (coding !== 1 || channels !== 1 || bits !== 16) throw new Error("The WAV file is not 16-bit mono PCM.");
        this.rate = view.getUint32(at + 12, true);
      }
      at += 8 + size + (size % 2);
    }
    return null;
  }
}

// Samples, one after the other without a gap, through Web Audio.
class PcmPlayer {
  constructor(context, listener, hasHeader) {
    this.context = context;
    this.listener = listener;
    this.reader = new PcmReader(hasHeader);
    this.nodes = new Set(); // that have not ended
    this.complete = false;
    this.stopped = false;
    this.seconds = 0; // scheduled
    this.until = 0; // when all that is scheduled has sounded, on the context's clock
    this.audible = false;
    this.gaps = 0;
    this.ended = new Promise((resolve) => (this.end = resolve));
  }

  set sampleRate(rate) {
    this.reader.rate = rate;
  }

  push(bytes) {
    this.schedule(this.reader.push(bytes), this.reader.rate);
  }

  schedule(samples, rate) {
    if (!samples.length) return;
    const { context } = this;
    const buffer = context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const node = context.createBufferSource();
    node.buffer = buffer;
    node.connect(context.destination);
    if (this.until < context.currentTime) {
      if (this.seconds) this.gaps += 1;
      // A whole number of samples: a start between two would be interpolated, and click.
      const lead = Math.round(LEAD_S * context.sampleRate) / context.sampleRate;
      this.until = context.currentTime + lead;
    }
    node.start(this.until);
    this.nodes.add(node);
    node.onended = () => {
      this.nodes.delete(node);
      if (this.complete && !this.nodes.size) this.end();
    };
    const audible = this.audible ? -1 : firstAudible(samples);
    if (audible >= 0) {
      this.audible = true;
      const wait = this.until + audible / rate - context.currentTime + (context.outputLatency || 0);
      this.listener.heard(performance.now() + 1000 * wait);
    }
    this.until += buffer.duration;
    this.seconds += buffer.duration;
    this.listener.samples(samples, rate);
  }

  async finish() {
    this.complete = true;
    if (!this.nodes.size) this.end();
  }

  stop() {
    this.stopped = true;
    for (const node of this.nodes) node.stop();
    this.end();
  }

  // Seconds of the audio that were heard.
  get position() {
    return Math.max(0, this.seconds - Math.max(0, this.until - this.context.currentTime));
  }
}

// What this browser plays only as a whole.
class WholePlayer extends PcmPlayer {
  push() {}

  async finish(blob) {
    const found = await decoded(this.context, blob);
    if (this.stopped) return;
    this.schedule(...found);
    await super.finish();
  }
}

// Compressed audio that the browser decodes as it comes.
class MediaPlayer {
  constructor(context, listener, type) {
    this.context = context;
    this.listener = listener;
    this.gaps = 0;
    this.stopped = false;
    this.ended = new Promise((resolve, reject) => Object.assign(this, { end: resolve, fail: reject }));
    this.ended.catch(() => {}); // whoever awaits it hears of it, but may still be reading
    this.source = new MediaSourceKind();
    this.audio = new Audio();
    this.audio.disableRemotePlayback = true; // a managed source asks for it
    this.address = URL.createObjectURL(this.source);
    this.audio.src = this.address;
    this.begun = once(this.audio, "playing").then(() => {
      this.audio.addEventListener("waiting", () => (this.gaps += 1));
      return performance.now() - 1000 * this.audio.currentTime;
    });
    this.begun.then((time) => listener.heard(time));
    this.audio.addEventListener("ended", this.end);
    this.audio.addEventListener("error", () => {
      this.fail(new Error(`The audio cannot be played (${this.audio.error.message}).`));
    });
    this.audio.play().catch(this.fail);
    this.work = once(this.source, "sourceopen").then(() => {
      this.forget();
      this.buffer = this.source.addSourceBuffer(type);
    });
  }

  // While the address exists, the browser keeps the source, its player and what was buffered.
  forget() {
    URL.revokeObjectURL(this.address);
  }

  push(bytes) {
    this.inOrder(() => this.append(bytes));
  }

  // Without holding up the one who reads from the server.
  inOrder(task) {
    this.work = this.work.then(() => this.stopped || task());
    this.work.catch(this.fail);
  }

  async append(bytes) {
    for (;;) {
      try {
        this.buffer.appendBuffer(bytes);
        break;
      } catch (error) {
        if (error.name !== "QuotaExceededError") throw error;
        await once(this.audio, "timeupdate"); // what has been heard makes room
      }
    }
    await once(this.buffer, "updateend");
  }

  async finish(blob) {
    this.inOrder(() => this.source.endOfStream());
    const [samples, rate] = await decoded(this.context, blob);
    if (this.stopped) return;
    this.listener.samples(samples, rate);
    const audible = firstAudible(samples);
    if (audible >= 0) this.begun.then((time) => this.listener.heard(time + (1000 * audible) / rate));
  }

  stop() {
    this.stopped = true;
    this.end();
    this.forget(); // it may never have opened
    this.audio.removeAttribute("src");
    this.audio.load();
  }

  get position() {
    return this.audio.currentTime;
  }
}
