"""Duration models: a straight line through the durations of texts in one voice.

Owns the fit. Its use, a request's limit of audio, is `sheen.engine.voice`'s.
"""

import numpy as np
from numpy.typing import ArrayLike

from sheen.lm.checkpoint import DurationModel


def fit_durations(characters: ArrayLike, frames: ArrayLike) -> DurationModel:
    """The least-squares line through frames `[n]` over characters `[n]`, n at least 1; a line
    through the origin if its slope or its intercept would be negative."""
    x, y = np.asarray(characters, np.float64), np.asarray(frames, np.float64)
    varied = x.var() > 0
    slope = float(((x - x.mean()) * (y - y.mean())).mean() / x.var()) if varied else 0.0
    first = float(y.mean() - slope * x.mean())
    if slope <= 0 or first < 0:
        slope, first = float(y.sum() / x.sum()), 0.0
    return DurationModel(base_frames=round(first, 4), frames_per_char=round(slope, 5))
