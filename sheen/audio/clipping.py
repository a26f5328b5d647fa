"""Clipping: where a recording is cut off at its largest sample.

Owns the measure; the caller decides how much is too much.
"""

import numpy as np

from sheen.audio.samples import Samples

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
