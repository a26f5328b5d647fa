"""Clipping: where a recording is cut off at its largest sample.

Owns the measure; what is too much is for whoever asks.
"""

import numpy as np

from sheen.audio.samples import Samples

CLIPPED_RUN = 3
"""Neighbours that all are the largest sample: none of speech's crests is so flat."""
LEAST_PEAK = 0.2
"""Of full scale: in a softer recording a crest may be flat because it has few steps."""


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
