"""Part "codec": the codes and the audio of the reference codec are those of a CPU.

Tolerances: 99.9% of codes, because a near tie of two codes falls as the last bits round, and
convolutions on a GPU add in another order; 1e-4 of full scale for audio, 3 of the 16 bits' last
values, where a CPU's windows agree to 1e-6. TF32 must show, or the check would be blind.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acceptance import references
from acceptance.bench import Bench
from acceptance.models import codec_layout, digest, reference_clips, reference_codec, reference_snac
from sheen.codec.inference import ClipEncoder
from sheen.codec.layout import Codes
from sheen.codec.snac import Codec, full_float32
from sheen.engine.audio.streaming import StreamingDecoder

DECODED = 4
"""Clips whose audio is compared: the first."""
SAME_CODES, SAME_AUDIO = 0.999, 1e-4
PUSHED = 5
"""Frames at a time, for the streaming decoder."""


def check(bench: Bench) -> None:
    expected = references.read()
    references.check(expected, "codec", digest(reference_snac()))
    codec = reference_codec(bench.device)
    clips = reference_clips()[: bench.pick(None, DECODED)]
    codes = [
        [expected[f"codes_{clip}_{level}"] for level in range(len(codec.strides))]
        for clip in range(len(clips))
    ]
    for text, batch in (("together", True), ("one by one", False)):
        same = agreement(codec.encode(clips, batch=batch), codes)
        bench.row(
            f"codes as on a CPU, clips encoded {text}",
            same,
            "of codes",
            expected=f">= {SAME_CODES}",
            passed=same >= SAME_CODES,
            distinct=distinct(codes),
        )
    whole, windows = decoded(codec, codes), streamed(codec, codes)
    # Kept as 16 bits: half a step is not the device's.
    for text, found, audio in (
        ("audio as on a CPU", whole, expected["audio"] / 32768),
        ("windows as the whole", windows, whole),
    ):
        error = float(np.abs(found - audio).max())
        bench.row(
            text,
            error,
            "of full scale, at most",
            expected=f"<= {SAME_AUDIO:g}",
            passed=error <= SAME_AUDIO,
        )
    _check_tf32(bench, codec, clips)


def _check_tf32(bench: Bench, codec: Codec, clips: Sequence[Tensor]) -> None:
    with full_float32():
        exact = _latents(codec, clips[0])
    with tf32():
        rounded = _latents(codec, clips[0])
    error = float((rounded - exact).norm() / exact.norm())
    bench.row(
        "latents in TF32, beside those in float32",
        error,
        "relative",
        expected=">= 1e-5: TF32 is off where it is not asked for",
        passed=error >= 1e-5 if bench.on_gpu else None,
    )


@torch.inference_mode()
def _latents(codec: Codec, clip: Tensor) -> Tensor:
    whole = len(clip) // codec.frame_samples * codec.frame_samples
    return ClipEncoder(codec.model).together(clip[None, :whole].to(codec.device), [whole])


@contextmanager
def tf32() -> Iterator[None]:
    """Convolutions in TF32, which is what torch does where nobody asks for more."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.conv.fp32_precision
    cudnn.conv.fp32_precision = "tf32"
    try:
        yield
    finally:
        cudnn.conv.fp32_precision = before


def answers(codec: Codec) -> dict[str, NDArray[Any]]:
    """Of a CPU, for the references."""
    codes = codec.encode(reference_clips())
    found = {
        f"codes_{clip}_{level}": values
        for clip, levels in enumerate(codes)
        for level, values in enumerate(levels)
    }
    return found | {"audio": np.round(decoded(codec, codes) * 32768).astype(np.int16)}


def agreement(found: Sequence[Codes], expected: Sequence[Codes]) -> float:
    """The share of codes that are equal."""
    pairs = [
        pair
        for one, two in zip(found, expected, strict=True)
        for pair in zip(one, two, strict=True)
    ]
    return sum(int((a == b).sum()) for a, b in pairs) / sum(len(b) for _, b in pairs)


def distinct(codes: Sequence[Codes]) -> list[int]:
    """How many codes occur, by level: codes that are all the same would always agree."""
    return [len(np.unique(np.concatenate(level))) for level in zip(*codes, strict=True)]


def decoded(codec: Codec, codes: Sequence[Codes]) -> NDArray[np.float32]:
    """The audio of the first clips end to end, with the codec's noise."""
    parts = [
        codec.decode([level[None] for level in levels], seeds=[clip])[0].numpy()
        for clip, levels in enumerate(codes[:DECODED])
    ]
    return np.concatenate(parts)


def streamed(codec: Codec, codes: Sequence[Codes]) -> NDArray[np.float32]:
    """The same, as listeners get it."""
    layout = codec_layout(codec)
    parts = []
    for clip, levels in enumerate(codes[:DECODED]):
        decoder = StreamingDecoder(codec, layout, seed=clip)
        ids = layout.to_ids(layout.interleave(levels)).tolist()
        step = PUSHED * layout.tokens_per_frame
        parts += [decoder.decode(ids[at : at + step]) for at in range(0, len(ids), step)]
        parts.append(decoder.flush())
    return np.concatenate(parts)
