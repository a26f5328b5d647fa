"""Silence: dropped before speech while it streams, cut from the ends of recordings; and loudness.

Owns what counts as silence and how much of it stays. Knows nothing of codecs or text.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torchaudio.functional import loudness

from sheen.audio.io import Samples

NO_SAMPLES = np.zeros(0, np.float32)


class SilenceTrim:
    """Leaves out the silence before speech: samples in, samples out.

    Silence is what stays below `threshold` of full scale; `keep_s` of it before the first sound
    stays, because a sound's onset is softer than the sound. After `longest_s` without a sound
    everything passes: then the silence is the message.
    """

    def __init__(
        self,
        sample_rate: int,
        threshold: float = 0.01,
        keep_s: float = 0.05,
        longest_s: float = 1.0,
    ) -> None:
        self._threshold = threshold
        self._keep = round(keep_s * sample_rate)
        self._left = round(longest_s * sample_rate)
        self._held = NO_SAMPLES
        self._open = False

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """The samples `[n]` that pass; those that may belong to an onset are held back."""
        if self._open:
            return samples
        held = np.concatenate([self._held, samples])
        loud = np.flatnonzero(np.abs(held) >= self._threshold)
        first = int(loud[0]) if len(loud) else len(held)
        dropped = min(max(0, first - self._keep), self._left)
        self._left -= dropped
        self._open = len(loud) > 0 or self._left == 0
        self._held = NO_SAMPLES if self._open else held[dropped:]
        return held[dropped:] if self._open else NO_SAMPLES

    def flush(self) -> NDArray[np.float32]:
        """What was held back of an utterance that ends without a sound."""
        held, self._held, self._open = self._held, NO_SAMPLES, True
        return held


KEPT_SILENCE_S = 0.05
"""Of what `trim` would remove, at either end: a sound's onset is softer than the sound."""
PEAK = 0.99


def trim(samples: Samples, sample_rate: int, threshold_db: float) -> Samples:
    """Without what is softer than `threshold_db` of full scale at both ends, but KEPT_SILENCE_S;
    empty where nothing is louder."""
    loud = np.flatnonzero(np.abs(samples) >= 10 ** (threshold_db / 20))
    if not len(loud):
        return samples[:0]
    kept = round(KEPT_SILENCE_S * sample_rate)
    return samples[max(0, loud[0] - kept) : loud[-1] + 1 + kept]


def to_loudness(samples: Samples, sample_rate: int, lufs: float) -> Samples:
    """At an integrated loudness (ITU-R BS.1770, torchaudio's), or as near as PEAK allows.

    A clip shorter than the 0.4 s that the measure takes stays as it is.
    """
    if len(samples) < 0.4 * sample_rate:
        return samples
    measured = float(loudness(torch.from_numpy(samples)[None], sample_rate))
    if not math.isfinite(measured):
        return samples
    gain = min(10 ** ((lufs - measured) / 20), PEAK / max(float(np.abs(samples).max()), 1e-9))
    return samples * np.float32(gain)
