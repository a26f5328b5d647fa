"""How many streams one GPU serves: Qwen3-0.6B and the 24 kHz codec in their published shapes.

Random weights, bfloat16. First the cost of a recorded pass by slots and length, then the engine
with audio: streams that all listen at once, what they get in seconds of audio per second, the time
to the first sample, underruns. Prints Markdown tables. Only `sheen.core`, torch and transformers
are needed; on a CPU it runs too, unrecorded, for trying it out with --small.
"""

import argparse
import sys
import threading
import time

import numpy as np
import torch
from snac import SNAC
from workload import Shape, make_base

from sheen.core.codec import Codec
from sheen.core.decoding import SlotDecoder
from sheen.core.ending import Finished, Samples
from sheen.core.engine import Engine, memory_per_slot
from sheen.core.model import SpeechLM
from sheen.core.requests import Request
from sheen.core.sampling import Sampling

TEXT = 40  # tokens of a prompt


class Listener:
    """Plays what it gets at once."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self.asked = time.monotonic()
        self.first = 0.0
        self.samples = self.underruns = 0
        self.ending: Finished | None = None
        self.done = threading.Event()
        self._until = 0.0

    def __call__(self, item: Samples | Finished) -> None:
        now = time.monotonic()
        if isinstance(item, Finished):
            self.ending = item
            self.done.set()
            return
        if not self.samples:
            self.first = now - self.asked
        elif now > self._until + 0.001:
            self.underruns += 1
        self._until = max(now, self._until) + len(item) / self._rate
        self.samples += len(item)


def make_model(options: argparse.Namespace, device: torch.device) -> SpeechLM:
    shape = Shape(options.layers)
    shape = shape.small if options.small else shape
    lm = make_base(shape).eval().requires_grad_(False).bfloat16().to(device)
    return SpeechLM(lm, shape.layout)


def make_codec(device: torch.device, small: bool) -> Codec:
    torch.manual_seed(0)
    model = SNAC(
        sampling_rate=24_000,
        encoder_dim=4 if small else 48,
        encoder_rates=[2, 4, 8, 8],
        decoder_dim=64 if small else 1024,
        decoder_rates=[8, 8, 4, 2],
        attn_window_size=None,
        vq_strides=[4, 2, 1],
    )
    return Codec(model, device)


def make_request(model: SpeechLM, frames: int, seed: int) -> Request:
    words = [(7 * seed + word) % model.layout.first_id for word in range(TEXT)]
    return Request([*words, model.layout.start_id], frames, Sampling(seed=seed), frames)


def time_passes(model: SpeechLM, slots: int, past: int, passes: int) -> float:
    """Seconds of a pass with all slots running, `past` tokens in."""
    decoder = SlotDecoder(model, slots, TEXT + past + passes + 50)
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


def serve(model: SpeechLM, codec: Codec, slots: int, frames: int) -> str:
    generator = np.random.default_rng(0)
    positions = make_request(model, frames, 0).positions(model.layout)
    engine = Engine(model, codec, slots=slots, positions=positions, max_queue=10 * slots)
    per_second = codec.sample_rate / codec.frame_samples
    try:
        for count, length in ((slots, 5), (2 * slots, frames)):  # the first is warm-up
            gaps = generator.exponential(length / per_second / slots, count)
            started = time.monotonic()
            listeners = []
            for seed, due in enumerate(np.cumsum(gaps)):
                time.sleep(max(0.0, started + due - time.monotonic()))
                listeners.append(Listener(codec.sample_rate))
                engine.submit(make_request(model, length, seed), listeners[-1])
            for listener in listeners:
                listener.done.wait()
                assert listener.ending is not None
                assert listener.ending.reason == "length", listener.ending
            seconds = time.monotonic() - started
    finally:
        engine.close()
    audio = sum(listener.samples for listener in listeners) / codec.sample_rate / seconds
    p50, p95 = np.percentile([listener.first for listener in listeners], [50, 95])
    late = sum(listener.underruns > 0 for listener in listeners)
    return f"| {slots} | {audio:.1f} | {1e3 * p50:.0f} | {1e3 * p95:.0f} | {late} |"


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
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}")
    model, codec = make_model(options, device), make_codec(device, options.small)
    each = memory_per_slot(model, TEXT + int(82.03 * options.seconds) + 8)
    print(f"a slot for {options.seconds:.0f} s of audio takes {each / 1e6:.1f} MB\n")
    print("| slots | tokens before | ms per pass | tokens/s |\n|---|---|---|---|")
    for slots in options.slots:
        for past in options.past:
            seconds = time_passes(model, slots, past, options.passes)
            print(f"| {slots} | {past} | {1e3 * seconds:.2f} | {slots / seconds:.0f} |", flush=True)
    print("\n| slots | audio s/s | first audio p50, ms | p95, ms | streams with underruns |")
    print("|---|---|---|---|---|")
    frames = round(options.seconds * codec.sample_rate / codec.frame_samples)
    for slots in options.slots:
        print(serve(model, codec, slots, frames), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
