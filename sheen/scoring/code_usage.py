"""A codec at work: encoding, decoding, their speed, and the usage of the codebooks.

Owns what needs a codec and clips and nothing else: encoding in batches, decoding a clip, the codes
in random order, both speeds, and usage and perplexity of each codebook level. Compares no two
clips: that is `sheen.scoring.codec`'s.

Shapes: n samples.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sheen.codec.layout import Codes
from sheen.codec.snac import Codec

BATCH = 16
"""Clips encoded at a time, so that memory does not grow with their number."""

SPEED_SECONDS = 5.0
"""Clips are joined to at least this much before decoding is timed: a clip's ends cost extra."""


@dataclass(frozen=True)
class LevelUse:
    """Use of one codebook level over all clips. Perplexity is 2 to the entropy of its use."""

    codes: int
    used: int
    perplexity: float
    size: int


def encode_clips(codec: Codec, clips: Sequence[NDArray[np.float32]]) -> tuple[list[Codes], float]:
    """The codes of clips `[n]`, and how many seconds of audio were encoded per second."""
    started = time.perf_counter()
    waveforms = [torch.from_numpy(clip) for clip in clips]
    codes = [
        encoded
        for first in range(0, len(waveforms), BATCH)
        for encoded in codec.encode(waveforms[first : first + BATCH])
    ]
    took = time.perf_counter() - started
    return codes, sum(map(len, clips)) / codec.sample_rate / took


def decode_clip(codec: Codec, codes: Codes, samples: int, seed: int) -> NDArray[np.float32]:
    """One clip's codes to `samples` samples `[n]`."""
    levels = [level[None] for level in codes]
    audio: NDArray[np.float32] = codec.decode(levels, seeds=[seed])[0, :samples].numpy()
    return audio


def decode_speed(codec: Codec, codes: Sequence[Codes], seed: int) -> float:
    """Audio seconds decoded per second: clips joined to one, the best of three runs.

    The best, because a run can only be slowed by what else the machine does.
    """
    joined, seconds = 0, 0.0
    while seconds < SPEED_SECONDS:
        seconds += codes[joined % len(codes)][0].shape[0] * codec.frame_samples / codec.sample_rate
        joined += 1
    long = [
        np.concatenate([codes[i % len(codes)][level] for i in range(joined)])[None]
        for level in range(len(codec.strides))
    ]
    times = []
    for _ in range(3):
        started = time.perf_counter()
        codec.decode(long, seeds=[seed])
        times.append(time.perf_counter() - started)
    return seconds / min(times)


def shuffle_codes(codes: Codes, seed: int) -> Codes:
    """The codes with each level in random order: the control, unintelligible to an ASR."""
    draw = np.random.default_rng(seed)
    return [draw.permutation(level) for level in codes]


def code_usage(codes: Iterable[Codes], size: int) -> list[LevelUse]:
    """Use of each level's `size` codes over clips."""
    return [
        level_use(np.bincount(np.concatenate(level), minlength=size))
        for level in zip(*codes, strict=True)
    ]


def level_use(counts: NDArray[np.int64]) -> LevelUse:
    """Use of one level, from the count of each of its codes `[size]`."""
    perplexity = round(2 ** entropy_bits(counts), 1)
    return LevelUse(int(counts.sum()), int((counts > 0).sum()), perplexity, len(counts))


def entropy_bits(counts: NDArray[np.int64]) -> float:
    """The entropy of the distribution given by counts `[size]`, not all zero, in bits."""
    shares = counts[counts > 0] / counts.sum()
    return abs(float((shares * np.log2(shares)).sum()))
