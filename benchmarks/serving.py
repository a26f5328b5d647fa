"""The engine compared with transformers: throughput, time to first audible sample, underruns.

Run by `make bench`. All sides run one after the other, with the same checkpoint,
prompts, sampling, lengths and arrivals, and decode the audio. Requests arrive as a Poisson process;
at N streams there are N slots, and audio is asked for `--load` times as fast as N listeners hear
it. Lengths are fixed per request, so that no side has less to do. With `--shape` the cost of a
token at the shape of Qwen3-0.6B, random weights in bfloat16, is compared with (a)'s instead.
"""

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from listener import Listener
from numpy.typing import NDArray
from serving_sides import SIDES, Served, Side, generate_alone, open_side
from workload import Shape, make_base

from sheen.audio.samples import Samples
from sheen.engine.generation import TokenGenerator
from sheen.engine.types import Finished, Request, Sampling
from sheen.engine.voice import Voice
from sheen.lm.model import SpeechLM

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_MODEL = ROOT / "examples" / "english" / "voice"
SENTENCES = ROOT / "examples" / "english" / "everyday.txt"
WAIT_S = 3600


@dataclass
class Sink(Listener):
    """A listener that the engine's side calls, with the clock; it notes how its request ended."""

    asked: float = 0.0
    ended: float = 0.0
    error: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, item: Samples | Finished) -> None:
        now = time.monotonic()
        if isinstance(item, Finished):
            self.ended, self.error = now, item.error
            self.done.set()
            return
        self.came(now, item)


@dataclass(frozen=True)
class Figures:
    audio: float
    tokens: float
    first: NDArray[np.float64]
    underruns: int
    silent: int

    def row(self, name: str, baseline: "Figures | None") -> str:
        ratio = f"{self.audio / baseline.audio:.2f}" if baseline else "1.00"
        p50, p95 = np.percentile(self.first, [50, 95]) if len(self.first) else (np.nan, np.nan)
        return (
            f"| {name} | {self.audio:.2f} | {ratio} | {self.tokens:.0f} | {p50:.2f} | {p95:.2f} | "
            f"{self.underruns} |"
        )


def draw_requests(voice: Voice, count: int, sampling: Sampling, seed: int) -> list[Request]:
    """Everyday sentences; 1 to 4 seconds each, whatever the model would like."""
    generator = np.random.default_rng(seed)
    voices = voice.info.voices or [None]
    sentences = SENTENCES.read_text("utf-8").splitlines()
    requests = []
    for number in range(count):
        text = voice.model_input(str(generator.choice(sentences)))
        speaker = voices[number % len(voices)]
        own = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, number)
        request = voice.request(text, speaker, own, 30.0)
        frames = int(generator.integers(12, 48))
        requests.append(Request(request.prompt, frames, own, frames))
    return requests


def serve(
    side: Side, requests: Sequence[Request], arrivals: NDArray[np.float64], rate: int, per: int
) -> Figures:
    """Send requests when they are due, and hear them all."""
    listeners = [Sink(rate) for _ in requests]
    started = time.monotonic()
    for request, listener, due in zip(requests, listeners, arrivals, strict=True):
        time.sleep(max(0.0, started + due - time.monotonic()))
        listener.asked = time.monotonic()
        side.submit(request, listener)
    for listener in listeners:
        if not listener.done.wait(WAIT_S) or listener.error:
            raise RuntimeError(f"a request failed: {listener.error or 'it has no ending'}")
    seconds = max(listener.ended for listener in listeners) - started
    samples = sum(listener.samples for listener in listeners)
    asked = sum(request.max_frames for request in requests)
    assert samples == asked * per, f"{samples} samples of {asked} frames"
    heard = [listener.audible - listener.asked for listener in listeners if listener.audible]
    return Figures(
        audio=samples / rate / seconds,
        tokens=7 * asked / seconds,
        first=np.array(heard),
        underruns=sum(listener.underruns for listener in listeners),
        silent=len(listeners) - len(heard),
    )


def compare(served: Served, options: argparse.Namespace) -> None:
    voice = served.voice
    rate, per = voice.codec.sample_rate, voice.codec.frame_samples
    sampling = Sampling()
    for streams in options.streams:
        count = max(6, options.each * streams)
        requests = draw_requests(voice, count, sampling, seed=streams)
        seconds = float(np.mean([request.max_frames for request in requests])) * per / rate
        gaps = np.random.default_rng(streams).exponential(seconds / (options.load * streams), count)
        arrivals = np.cumsum(gaps) - gaps[0]
        print(
            f"\n{streams} streams: {count} requests of {seconds:.1f} s, over {arrivals[-1]:.1f} s"
        )
        print("| | audio s/s | beside (a) | tokens/s | TTFA p50, s | p95, s | underruns |")
        print("|---|---|---|---|---|---|---|", flush=True)
        baseline: Figures | None = None
        for name in options.sides:
            side = open_side(name, served, streams, requests)
            try:
                short = [Request(r.prompt, 5, r.sampling, 5) for r in requests[:streams]]
                serve(side, short, np.zeros(len(short)), rate, per)  # warm-up
                figures = serve(side, requests, arrivals, rate, per)
            finally:
                side.close()
            if name == "a":
                baseline = figures
            print(figures.row(SIDES[name], baseline), flush=True)
            if figures.silent:
                print(f"({figures.silent} requests were never audible and have no TTFA)")


def seconds_per_token(model: SpeechLM, streams: int, tokens: int) -> float:
    """Of the engine's passes with so many requests, past a prompt of 40 tokens."""
    prompt = [*range(100, 139), model.layout.start_id]
    decoder = TokenGenerator(model, streams, len(prompt) + tokens + 20)
    for slot in range(streams):
        decoder.start(slot, prompt, Sampling(seed=slot), tokens + 10, tokens + 10)
    for _ in range(10):
        decoder.step()
    started = time.perf_counter()
    for _ in range(tokens):
        step = decoder.step()
        assert step is not None
        step.read()
    return (time.perf_counter() - started) / (tokens * streams)


def compare_shape(options: argparse.Namespace) -> None:
    shape = Shape(options.layers)
    model = SpeechLM(make_base(shape).eval().requires_grad_(False).bfloat16(), shape.layout)
    frames = 7
    prompt = [*range(100, 139), model.layout.start_id]
    request = Request(prompt, frames, Sampling(), frames)
    generate_alone(model, request)  # warm-up
    started = time.perf_counter()
    generate_alone(model, request)
    alone = (time.perf_counter() - started) / (frames * model.layout.tokens_per_frame)
    print(f"\n| Qwen3-0.6B's shape, {options.layers} layers, bfloat16 | ms per token | ratio |")
    print("|---|---|---|")
    print(f"| {SIDES['a']} | {1e3 * alone:.1f} | 1.00 |", flush=True)
    for streams in (1, 8):
        ours = seconds_per_token(model, streams, frames * model.layout.tokens_per_frame)
        print(f"| Sheen, {streams} streams | {1e3 * ours:.1f} | {alone / ours:.2f} |", flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(DEFAULT_MODEL), help="checkpoint folder")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--load", type=float, default=2.0, help="(default: %(default)s)")
    parser.add_argument("--each", type=int, default=2, help="requests per stream")
    parser.add_argument("--threads", type=int, default=1, help="torch threads per computation")
    parser.add_argument("--shape", action="store_true", help="Qwen3-0.6B's shape instead")
    parser.add_argument("--layers", type=int, default=28, help="of that shape")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    if options.shape:
        compare_shape(options)
        return 0
    try:
        served = Served.load(options.model)
    except ValueError as error:
        print(f"benchmarks/serving.py: error: {error}", file=sys.stderr)
        return 2
    try:
        compare(served, options)
    finally:
        served.beside.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
