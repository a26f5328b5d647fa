"""Samples as arrays, and what is silent or clipped in them.

Owns the silence before speech, removed while samples stream, and the measure of clipping: how much
is too much is the caller's decision. Imports numpy alone, none of the libraries for files, because
the engine needs this part of audio.
"""

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
"""Mono `[n]`, of full scale 1."""
NO_SAMPLES = np.zeros(0, np.float32)
SILENCE = 0.01
"""Synthesized samples below this, of full scale 1, are silence."""
KEPT_SILENCE_S = 0.05
"""Silence kept next to the sound of an utterance: a sound's onset is softer than the sound."""


class SilenceTrim:
    """Removes the silence before speech: samples in, samples out.

    Silence is what stays below `threshold` of full scale; `keep_s` of it before the first sound
    stays. After `longest_s` without a sound everything passes: then the silence is meant.
    """

    def __init__(
        self,
        sample_rate: int,
        threshold: float = SILENCE,
        keep_s: float = KEPT_SILENCE_S,
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


CLIPPED_RUN = 3
"""Consecutive samples at the largest value: no peak of unclipped speech is so flat."""
LEAST_PEAK = 0.2
"""Least peak, of full scale: a softer recording's peaks may be flat for want of steps."""


def clipped_per_second(samples: Samples, sample_rate: int, peak: float | None = None) -> float:
    """Runs of CLIPPED_RUN samples at the recording's largest one, of either sign."""
    if not len(samples):
        return 0.0
    highest = float(np.abs(samples).max()) if peak is None else peak
    if highest < LEAST_PEAK:
        return 0.0
    # Half a step of 16 bits: what a decoder rounds.
    runs = 0
    for side in (samples, -samples):
        flat = np.concatenate([[False], side >= highest - 2**-16, [False]])
        edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
        runs += int((edges[1::2] - edges[::2] >= CLIPPED_RUN).sum())
    return runs * sample_rate / len(samples)
