"""How many streams one GPU serves: Qwen3-0.6B and the 24 kHz codec in their published shapes.

Random weights, bfloat16. First the cost of a pass by slots and length, beside its floor: the time
in which the memory gives the weights and the running requests' keys and values once. Then the
engine with audio, exact and with a shorter look-ahead: as many listeners as slots, the seconds of
audio per second that they get, the time to the first audible sample, underruns; and at last how
many streams were held. Prints Markdown tables. Only `sheen`, torch, transformers and snac are
needed; on a CPU it runs too, unrecorded, for trying it out with --small.
"""

import argparse
import math
import sys
import threading
import time

import numpy as np
import torch
from listener import Listener
from machine import bandwidth, describe
from published import make_snac
from workload import Shape, make_base

from sheen.audio.io import Samples
from sheen.codec.snac import Codec
from sheen.engine.engine import Engine, memory_per_slot
from sheen.engine.generation import TokenGenerator
from sheen.engine.sampler import Sampling
from sheen.engine.types import Finished, Request
from sheen.lm.kv_cache import CacheShape
from sheen.lm.model import SpeechLM

TEXT = 40  # tokens of a prompt
LOOK_AHEADS = {None: 0.150, 1: 0.100}
"""Frames of the first chunk's look-ahead (None: all that reach it), and the p95 of the time to the
first audible sample with which streams count as held, in seconds."""


class Heard:
    """A sink whose listener plays what comes at once."""

    def __init__(self, rate: int) -> None:
        self.listener = Listener(rate)
        self.asked = time.monotonic()
        self.ending: Finished | None = None
        self.done = threading.Event()

    def __call__(self, item: Samples | Finished) -> None:
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
        else:
            self.listener.came(time.monotonic(), item)

    @property
    def waited(self) -> float:
        """Seconds to the first audible sample; infinite when there was none."""
        audible = self.listener.audible
        return math.inf if audible is None else audible - self.asked


def make_model(options: argparse.Namespace, device: torch.device) -> SpeechLM:
    shape = Shape(options.layers)
    shape = shape.small if options.small else shape
    lm = make_base(shape).eval().requires_grad_(False).bfloat16().to(device)
    model = SpeechLM(lm, shape.layout)
    model.freeze()
    return model


def make_codec(device: torch.device, small: bool) -> Codec:
    codec = Codec(make_snac(small), device)
    # As loud as speech at its loudest, whatever random weights give.
    loudest = codec.decode([np.zeros((1, 16 * n), np.int16) for n in (1, 2, 4)]).abs().max()
    final = codec.model.decoder.model[-2]
    final.weight.mul_(0.3 / loudest)
    final.bias.mul_(0.3 / loudest)
    return codec


def make_request(model: SpeechLM, frames: int, seed: int) -> Request:
    words = [(7 * seed + word) % model.layout.first_id for word in range(TEXT)]
    return Request([*words, model.layout.start_id], frames, Sampling(seed=seed), frames)


def time_passes(model: SpeechLM, slots: int, past: int, passes: int) -> float:
    """Seconds of a pass with all slots running, `past` tokens in."""
    decoder = TokenGenerator(model, slots, TEXT + past + passes + 50)
    decoder.prepare()
    for slot in range(slots):
        request = make_request(model, 1, slot)
        decoder.start(slot, request.prompt, request.sampling, past + passes + 20, 10**9)
    for _ in range(past):
        step = decoder.step()
    assert step is not None
    step.read()
    started = time.perf_counter()
    for _ in range(passes):
        step = decoder.step()
    assert step is not None
    step.read()
    return (time.perf_counter() - started) / passes


def floor(model: SpeechLM, slots: int, positions: float, bytes_per_second: float) -> float:
    """Seconds in which the memory gives what a pass must read: the body's weights, the head's rows
    of the levels at hand, and `positions` keys and values of every slot."""
    tables = {id(table) for table in model.tables}
    body = sum(
        weight.numel() * weight.itemsize
        for weight in model.lm.parameters()
        if id(weight) not in tables
    )
    layout = model.layout
    rows = layout.codebook_size * min(slots, len(layout.strides))
    head = rows * model.head.shape[1] * model.head.itemsize
    shape = CacheShape.of(model.lm)
    position = 2 * shape.layers * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    return (body + head + slots * positions * position) / bytes_per_second


def serve(
    model: SpeechLM, codec: Codec, slots: int, frames: int, look_ahead: int | None
) -> tuple[str, bool]:
    """A row of the table, and whether all were heard in time."""
    generator = np.random.default_rng(0)
    max_seq_len = make_request(model, frames, 0).seq_len(model.layout)
    engine = Engine(
        model,
        codec,
        slots=slots,
        max_seq_len=max_seq_len,
        max_queue=10 * slots,
        look_ahead=look_ahead,
    )
    per_second = codec.sample_rate / codec.frame_samples
    try:
        for count, length in ((slots, 5), (2 * slots, frames)):  # the first is warm-up
            gaps = generator.exponential(length / per_second / slots, count)
            started = time.monotonic()
            sinks = []
            for seed, due in enumerate(np.cumsum(gaps)):
                time.sleep(max(0.0, started + due - time.monotonic()))
                sinks.append(Heard(codec.sample_rate))
                engine.submit(make_request(model, length, seed), sinks[-1])
            for sink in sinks:
                sink.done.wait()
                assert sink.ending is not None
                assert sink.ending.reason == "length", sink.ending
            seconds = time.monotonic() - started
    finally:
        engine.close()
    audio = sum(sink.listener.seconds for sink in sinks) / seconds
    p50, p95 = np.percentile([sink.waited for sink in sinks], [50, 95])
    late = sum(sink.listener.underruns > 0 for sink in sinks)
    name = "exact" if look_ahead is None else f"{look_ahead} frame"
    row = f"| {slots} | {name} | {audio:.1f} | {1e3 * p50:.0f} | {1e3 * p95:.0f} | {late} |"
    return row, late == 0 and float(p95) <= LOOK_AHEADS[look_ahead]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--past", type=int, nargs="+", default=[100, 600])
    parser.add_argument("--passes", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=8.0, help="audio of a request")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--small", action="store_true", help="thin layers, to try the script")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    speed = bandwidth(device)
    print(f"{describe(device)}, copies {speed / 1e9:.0f} GB/s")
    model, codec = make_model(options, device), make_codec(device, options.small)
    each = memory_per_slot(model, TEXT + int(82.03 * options.seconds) + 8)
    print(f"a slot for {options.seconds:.0f} s of audio takes {each / 1e6:.1f} MB\n")
    print(
        "| slots | tokens before | ms per pass | of the floor | tokens/s |\n|---|---|---|---|---|"
    )
    for slots in options.slots:
        for past in options.past:
            seconds = time_passes(model, slots, past, options.passes)
            least = floor(model, slots, TEXT + past + options.passes / 2, speed)
            print(
                f"| {slots} | {past} | {1e3 * seconds:.2f} | {least / seconds:.0%} | "
                f"{slots / seconds:.0f} |",
                flush=True,
            )
    print(
        "\n| slots | look-ahead | audio s/s | audible p50, ms | p95, ms | streams with underruns |"
    )
    print("|---|---|---|---|---|---|")
    frames = round(options.seconds * codec.sample_rate / codec.frame_samples)
    held = dict.fromkeys(LOOK_AHEADS, 0)
    for look_ahead in LOOK_AHEADS:
        for slots in options.slots:
            row, in_time = serve(model, codec, slots, frames, look_ahead)
            print(row, flush=True)
            if in_time:
                held[look_ahead] = max(held[look_ahead], slots)
    for look_ahead, limit in LOOK_AHEADS.items():
        name = "exact" if look_ahead is None else f"{look_ahead} frame"
        print(
            f"\nStreams held without an underrun, look-ahead {name}, p95 within "
            f"{1e3 * limit:.0f} ms: {held[look_ahead]}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
