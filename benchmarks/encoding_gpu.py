"""How many hours of audio one GPU encodes in an hour: SNAC's published shape, random weights.

First Sheen's own way, float32 in batches cut by a budget of padded seconds, one budget a row. Then,
at the best budget, what less exact arithmetic would give. Beside each the share of the memory's
floor, and how many codes are those that float32 gives on a CPU, clip by clip: of the random
weights, and of the small codec that was trained (`--trained`), whose near ties are a real codec's.
The floor: every convolution reads its input and writes its output once. The clips are buzzes and
noise that come and go. Needs `sheen`, torch, transformers and snac; `--small` tries it out.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from machine import bandwidth, describe, synchronize
from published import make_snac
from torch import Tensor, nn

from sheen.codec.float32 import full_float32
from sheen.codec.inference import ClipEncoder, DilatedConv, cut_batches
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec, load_codec

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
SHORTEST_S, LONGEST_S = 1.0, 15.0


@dataclass(frozen=True)
class Way:
    text: str
    arithmetic: Callable[[str], AbstractContextManager[object]]
    itemsize: int = 4
    compiles: bool = False


def exact(kind: str) -> AbstractContextManager[object]:
    return full_float32()


def rounded(kind: str) -> AbstractContextManager[object]:
    return nullcontext()


def half(kind: str) -> AbstractContextManager[object]:
    return torch.autocast(kind, torch.bfloat16)


WAYS = [
    Way("float32, compiled layers", exact, compiles=True),
    Way("TF32 convolutions", rounded),
    Way("TF32 convolutions, compiled layers", rounded, compiles=True),
    Way("bfloat16", half, itemsize=2),
    Way("bfloat16, compiled layers", half, itemsize=2, compiles=True),
]


def draw_clips(seconds: float, rate: int) -> list[Tensor]:
    """Waveforms `[n]` of 1 to 15 s, `seconds` in all or a little more."""
    generator = np.random.default_rng(0)
    clips: list[Tensor] = []
    left = seconds
    while left > 0:
        length = generator.uniform(SHORTEST_S, LONGEST_S)
        left -= length
        at = np.arange(int(length * rate)) / rate
        pitch = generator.uniform(80, 250) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * at))
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        buzz = sum(np.sin(k * phase) / k for k in range(1, 12))
        loud = 0.5 + 0.5 * np.sin(2 * np.pi * generator.uniform(2, 4) * at)
        wave = loud * (0.1 * buzz + 0.02 * generator.standard_normal(len(at)))
        clips.append(torch.from_numpy(wave.astype(np.float32)))
    return clips


def floor_bytes(codec: Codec, itemsize: int) -> float:
    """What the encoder's convolutions read and write per second of audio, at least."""
    counted = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += inputs[0].numel() + output.numel()

    inside = {layer.published for layer in codec.model.modules() if isinstance(layer, DilatedConv)}
    hooks = [
        layer.register_forward_hook(count)
        for layer in codec.model.encoder.modules()
        if isinstance(layer, (nn.Conv1d, DilatedConv)) and layer not in inside
    ]
    samples = 16 * codec.frame_samples
    codec.encode([torch.zeros(samples)], batch=True)
    for hook in hooks:
        hook.remove()
    return counted * itemsize * codec.sample_rate / samples


@torch.inference_mode()
def encode(codec: Codec, clips: Sequence[Tensor], budget: int, way: Way) -> list[Codes]:
    """As `Codec.encode` in batches, in another arithmetic."""
    block = codec.frame_samples * codec.block_frames
    lengths = [-(-len(clip) // block) * block for clip in clips]
    encoder = ClipEncoder(codec.model)
    encoded: dict[int, Codes] = {}
    for members in cut_batches(lengths, budget):
        own = [lengths[index] for index in members]
        padded = torch.zeros(len(members), max(own))
        for row, index in enumerate(members):
            padded[row, : len(clips[index])] = clips[index]
        with way.arithmetic(codec.device.type):
            latents = encoder.together(padded.to(codec.device), own)
        with full_float32():
            levels = codec.model.quantizer(latents.float())[1]
        levels = [level.to(torch.int16).cpu().numpy() for level in levels]
        for row, index in enumerate(members):
            encoded[index] = [
                level[row, : own[row] // (codec.hop * stride)]
                for level, stride in zip(levels, codec.strides, strict=True)
            ]
    return [encoded[index] for index in range(len(clips))]


def agreement(found: Sequence[Codes], expected: Sequence[Codes]) -> float:
    """The share of codes that are equal."""
    pairs = [
        pair
        for one, two in zip(found, expected, strict=True)
        for pair in zip(one, two, strict=True)
    ]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(len(b) for _, b in pairs)


def compile_blocks(codec: Codec) -> None:
    """The encoder's layers, each for any length: activations and convolutions become one pass."""
    torch._dynamo.reset()
    for stage in codec.model.encoder.block:
        stage.compile(dynamic=True)


class Bench:
    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.device = device
        self.options = options
        self.trained = load_codec(str(options.trained))
        self.clips = draw_clips(60.0 * options.minutes, 24_000)
        self.few = self.clips[: options.compared]
        self.seconds = sum(map(len, self.clips)) / 24_000
        self.bandwidth = bandwidth(device)
        self.expected = [
            codec.encode(self.few, batch=False) for codec in (self.codec(), self.trained)
        ]

    def codec(self) -> Codec:
        return Codec(make_snac(self.options.small), torch.device("cpu"))

    def row(self, text: str, budget_s: float, way: Way | None) -> float:
        """Measure and print one row; audio seconds per second. `way` None: Sheen's own."""
        budget = round(budget_s * 24_000)
        codecs = [self.codec().to(self.device), load_codec(str(self.options.trained), self.device)]
        floor = floor_bytes(codecs[0], 4 if way is None else way.itemsize) / self.bandwidth

        def run(codec: Codec, clips: Sequence[Tensor]) -> list[Codes]:
            if way is None:
                return codec.encode(clips, budget, batch=True)
            return encode(codec, clips, budget, way)

        if way is not None and way.compiles:
            for codec in codecs:
                compile_blocks(codec)
        # Once before: the first time kernels are chosen and layers compiled.
        run(codecs[0], self.clips)
        synchronize(self.device)
        started = time.perf_counter()
        run(codecs[0], self.clips)
        rate = self.seconds / (time.perf_counter() - started)
        shares = [
            agreement(run(codec, self.few), expected)
            for codec, expected in zip(codecs, self.expected, strict=True)
        ]
        print(
            f"| {text} | {budget_s:g} | {rate:.1f} | {rate * floor:.0%} | "
            f"{shares[0]:.3%} | {shares[1]:.3%} |",
            flush=True,
        )
        return rate


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0, help="of audio")
    parser.add_argument("--budgets", type=float, nargs="+", default=[15, 30, 60, 120, 240, 480])
    parser.add_argument("--compared", type=int, default=50, help="clips encoded on the CPU too")
    parser.add_argument("--trained", type=Path, default=DIGITS / "codec")
    parser.add_argument("--small", action="store_true", help="thin layers, to try the script")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bench = Bench(options, device)
    print(f"{describe(device)}, copies {bench.bandwidth / 1e9:.0f} GB/s\n")
    print(
        "| arithmetic | padded seconds a batch | audio hours per hour | of the floor | "
        "codes as on a CPU | of the trained codec |\n|---|---|---|---|---|---|"
    )
    rates = {
        budget: bench.row("float32, as Sheen does", budget, None) for budget in options.budgets
    }
    best = max(rates, key=lambda budget: rates[budget])
    for way in WAYS:
        bench.row(way.text, best, way)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
