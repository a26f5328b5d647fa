"""Part "encode": hours of audio that one device encodes in an hour, SNAC's published shape.

First as the product does it, at two sizes of batches: all shapes new, then the same shapes again.
Then what less exact arithmetic would give, TF32 and bfloat16, and layers compiled into fewer passes
over memory; beside each how many codes are those of a CPU. At last from 16-bit samples on the host,
which is what a worker gets. The floor: every convolution reads its input and writes its output
once.
"""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acceptance.bench import Bench
from acceptance.codec_checks import agreement, distinct, tf32
from acceptance.floors import convolution_bytes
from acceptance.learner_checks import compiling
from acceptance.models import RATE, published_snac
from sheen.codec.inference import ClipEncoder, DilatedConv, cut_batches
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec, full_float32

SHORTEST_S, LONGEST_S = 1.0, 15.0
SAME_CODES = 0.999
COMPARED = 20
"""Clips whose codes are compared with a CPU's: parts of the first ones."""
COMPARED_S = 2.0
GOAL = 5_000.0
"""Hours of audio in an hour."""


@dataclass(frozen=True)
class Way:
    text: str
    arithmetic: Callable[[], AbstractContextManager[None]]
    dtype: torch.dtype = torch.float32
    compiles: bool = False


WAYS = [
    Way("float32, clips on the device", full_float32),
    Way("TF32", tf32),
    Way("bfloat16", nullcontext, torch.bfloat16),
    Way("float32, compiled", full_float32, compiles=True),
    Way("bfloat16, compiled", nullcontext, torch.bfloat16, compiles=True),
]


def check(bench: Bench) -> None:
    codec = Codec(published_snac(bench.small), bench.device)
    on_device = _draw_clips(bench, bench.pick(1800.0, 0.8))
    clips = [clip.cpu() for clip in on_device]
    few = [clip[: int(COMPARED_S * RATE)] for clip in clips[:COMPARED]]
    expected = Codec(published_snac(bench.small), torch.device("cpu")).encode(few)
    hours = sum(map(len, clips)) / RATE / 3600
    sound = torch.zeros(16 * codec.frame_samples)
    floor = convolution_bytes(codec, lambda: codec.encode([sound], batch=True))
    floor /= len(sound) / RATE * bench.ceilings.copy  # seconds for a second of audio

    def row(
        text: str, seconds: float, codes: Sequence[Codes], itemsize: int = 4, **more: Any
    ) -> None:
        exact = more.pop("exact", False)
        same = agreement(codes, expected)
        bench.row(
            text,
            3600 * hours / seconds,
            "h/h",
            floor=1 / (floor * itemsize / 4),
            bound="bytes of the convolutions' inputs and outputs",
            expected=f">= {SAME_CODES} of the CPU's codes" if exact else "",
            passed=same >= SAME_CODES if exact else None,
            codes_as_on_a_cpu=same,
            distinct_codes=distinct(expected),
            **more,
        )

    best, budget = 0.0, 0
    for padded in bench.pick([120.0, 480.0], [0.6, 1.2]):
        size = int(padded * RATE)
        new, again = (
            bench.seconds(lambda: codec.encode(clips, size, batch=True))  # noqa: B023
            for _ in range(2)
        )
        row(
            f"as the product does, {padded:g} s a batch",
            again,
            codec.encode(few, size, batch=True),
            exact=True,
            with_new_shapes=3600 * hours / new,
            shapes=len({shape for _, shape in cut_batches([*map(len, clips)], size)}),
        )
        if hours / again > best:
            best, budget = hours / again, size
    bench.row(
        "encoded in an hour, at best",
        3600 * best,
        "h/h",
        floor=1 / floor,
        bound="bytes of the convolutions' inputs and outputs",
        expected=f">= {GOAL:,.0f} on an H200",
        passed=bench.judged(3600 * best >= GOAL, on="H200"),
    )
    pcm = [(clip.numpy() * 32767).astype(np.int16) for clip in clips]

    def from_host() -> None:
        codec.encode([torch.from_numpy(part).float() / 32768 for part in pcm], budget, batch=True)

    row("from 16-bit samples on the host", bench.seconds(from_host), codec.encode(few, batch=True))
    # Of the compiled ways one tries their lines.
    for way in bench.pick(WAYS, [*WAYS[:3], WAYS[-1]]):
        if bench.left < bench.pick(15.0, 0.0):
            bench.skip(way.text, "no time was left")
            continue
        _measure(bench, way, on_device, few, budget, row)


def _measure(
    bench: Bench,
    way: Way,
    clips: Sequence[Tensor],
    few: Sequence[Tensor],
    budget: int,
    row: Callable[..., None],
) -> None:
    codec = Codec(published_snac(bench.small), bench.device)
    quantizer = copy.deepcopy(codec.model.quantizer)
    # Buffers too: activations whose factors stayed in float32 would hand on float32.
    encoder = ClipEncoder(codec.model.to(way.dtype))
    inputs = [] if way.compiles else _formats(codec)
    started = time.monotonic()
    with compiling(bench) as graphs:
        if way.compiles:
            # Tracing takes longest of all toy sizes: one stage tries its lines.
            for stage in encoder._stages[: bench.pick(None, 1)]:
                compiled: Any = torch.compile(stage.run, dynamic=True)
                stage.run = compiled  # type: ignore[method-assign]

        def run(some: Sequence[Tensor]) -> list[Codes]:
            return _encode(codec, encoder, quantizer, some, budget, way)

        codes = run(few)
        run(clips)
        first = time.monotonic() - started
        seconds = bench.seconds(lambda: run(clips))
        made = graphs()
    row(
        way.text,
        seconds,
        codes,
        way.dtype.itemsize,
        first_s=first,
        graphs=made,
    )
    if not way.compiles and {*inputs} != {way.dtype}:
        raise RuntimeError(f"{way.text}: convolutions computed in {', '.join(map(str, {*inputs}))}")
    if way.compiles and not made:
        raise RuntimeError(f"{way.text}: nothing was compiled")


def _formats(codec: Codec) -> list[torch.dtype]:
    """Of the convolutions' inputs, filled in as they run."""
    found: list[torch.dtype] = []
    for layer in codec.model.encoder.modules():
        if isinstance(layer, (nn.Conv1d, DilatedConv)):
            layer.register_forward_hook(lambda module, inputs, out: found.append(inputs[0].dtype))
    return found


@torch.inference_mode()
def _encode(
    codec: Codec,
    encoder: ClipEncoder,
    quantizer: nn.Module,
    clips: Sequence[Tensor],
    budget: int,
    way: Way,
) -> list[Codes]:
    """As `Codec.encode` in batches, in another arithmetic."""
    block = codec.frame_samples * codec.block_frames
    lengths = [-(-len(clip) // block) * block for clip in clips]
    encoded: dict[int, Codes] = {}
    for members, shape in cut_batches(lengths, budget, block):
        own = [lengths[index] for index in members]
        padded = torch.zeros(shape, device=codec.device)
        for row, index in enumerate(members):
            padded[row, : len(clips[index])] = clips[index]
        with way.arithmetic():
            latents = encoder.together(padded.to(way.dtype), own)
        with full_float32():
            levels = quantizer(latents.float())[1]
        levels = [level.to(torch.int16).cpu().numpy() for level in levels]
        for row, index in enumerate(members):
            encoded[index] = [
                level[row, : own[row] // (codec.hop * stride)]
                for level, stride in zip(levels, codec.strides, strict=True)
            ]
    return [encoded[index] for index in range(len(clips))]


def _draw_clips(bench: Bench, seconds: float) -> list[Tensor]:
    """Waveforms `[n]` on the device, of 1 to 15 s, `seconds` in all or a little more."""
    lengths = np.random.default_rng(0)
    torch.manual_seed(0)
    shortest, longest = bench.pick((SHORTEST_S, LONGEST_S), (0.3, 0.5))
    clips: list[Tensor] = []
    while seconds > 0:
        length = min(lengths.uniform(shortest, longest), seconds + shortest)
        seconds -= length
        at = torch.arange(int(length * RATE), device=bench.device) / RATE
        turns = at * lengths.uniform(80, 250) + 3 * torch.sin(4.4 * at)
        buzz = 2 * (turns - turns.floor()) - 1
        loud = 0.5 + 0.5 * torch.sin(2 * np.pi * lengths.uniform(2, 4) * at)
        noise = torch.randn(len(at), device=bench.device)
        clips.append(loud * (0.2 * buzz + 0.02 * noise))
    return clips
