"""Results of an ASR model for a clip: text, words with their times, confidence.

Owns what makes the times of words exact at pauses: an aligner says where one word gives way to the
next, to some hundredths of a second and with the silence between them on either side; where sound
ends and begins the samples tell. Knows no model, see `FasterWhisper.align`.

Shapes: n samples, w words, f frames of HOP_S.
"""

import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Times = list[tuple[float, float]]
"""Begin and end of each word, seconds within the clip."""

HOP_S = 0.005
FRAME_S = 0.01
QUIET_DB = 35.0
"""Below the clip's loudest frame: softer than any sound of speech in a clip without noise."""
SHORTEST_PAUSE_S = 0.06
"""Shorter silence may be the closure of a stop inside a word."""
NEAR_S = 0.15
"""A pause so near to where two words meet is between them: the aligner's error is of that size."""


@dataclass(frozen=True)
class Word:
    """Times in seconds within the clip, by the ASR model: a first word begins tens, sometimes
    hundreds, of milliseconds late. `probability` 0 to 1; None if unknown."""

    text: str
    start: float
    end: float
    probability: float | None = None


@dataclass(frozen=True)
class Transcript:
    """None for values that the ASR model does not provide."""

    text: str
    words: list[Word] | None = None
    avg_logprob: float | None = None
    """Mean log probability of the tokens."""
    no_speech_prob: float | None = None
    language: str | None = None
    language_probability: float | None = None

    @property
    def compression_ratio(self) -> float:
        """Whisper's measure, which is high for a repetitive text. Not meaningful below about 80
        characters, where zlib's overhead dominates."""
        data = self.text.encode()
        return len(data) / len(zlib.compress(data)) if data else 0.0


def refine(waveform: NDArray[np.float32], sample_rate: int, times: Times) -> Times:
    """The times `[w]` of a clip `[n]`, with the pauses between words given to neither.

    The first word begins with the first sound, the last one ends with the last.
    """
    if not times:
        return []
    pauses, first, last = _pauses(waveform, sample_rate)
    starts = [start for start, _ in times]
    ends = [end for _, end in times]
    starts[0], ends[-1] = min(first, ends[0]), max(last, starts[-1])
    for number, met in enumerate(starts[1:]):
        left, right = starts[number], ends[number + 1]
        near = [
            (begin, end)
            for begin, end in pauses
            if begin - NEAR_S <= met <= end + NEAR_S and left < begin and end < right
        ]
        if near:
            ends[number], starts[number + 1] = max(near, key=lambda pause: pause[1] - pause[0])
    return list(zip(starts, ends, strict=True))


def _pauses(waveform: NDArray[np.float32], sample_rate: int) -> tuple[Times, float, float]:
    """Silences between sounds, where the first sound begins and where the last one ends."""
    seconds = len(waveform) / sample_rate
    hop, width = round(HOP_S * sample_rate), round(FRAME_S * sample_rate)
    if len(waveform) < width:
        return [], 0.0, seconds
    frames = np.lib.stride_tricks.sliding_window_view(waveform, width)[::hop]
    power = np.square(frames, dtype=np.float32).mean(axis=1)
    loud = np.flatnonzero(power > power.max() * 10 ** (-QUIET_DB / 10))
    if not len(loud):
        return [], 0.0, seconds
    begins, ends = loud * HOP_S, loud * HOP_S + FRAME_S
    gaps = [
        (float(ends[here]), float(begins[here + 1]))
        for here, (one, another) in enumerate(pairwise(loud))
        if (another - one) * HOP_S >= SHORTEST_PAUSE_S + FRAME_S
    ]
    return gaps, float(begins[0]), float(min(ends[-1], seconds))
