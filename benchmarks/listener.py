"""A listener who plays what comes at once: when they hear the first sound, and when they run dry.

Owns the two definitions. The first audible sample is the first of AUDIBLE or more; it is heard when
its chunk has come and what came before it has been played, so silence before it counts as waiting.
An underrun is a chunk that comes after all before it has been played. Knows nothing about HTTP or
formats, and has no clock: it is told when a chunk came.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AUDIBLE = 0.01
"""Of full scale: softer is silence, as for SilenceTrim."""
LATE_S = 0.001
"""A chunk that comes so little too late is in time: clocks and wake-ups are no finer."""


@dataclass
class Listener:
    """Hears one stream of `rate` samples per second. Times are seconds of one clock."""

    rate: int
    plays_until: float = 0.0
    """When all that came will have been played."""
    audible: float | None = None
    """When the first audible sample is heard."""
    underruns: int = 0
    missed_s: float = 0.0
    """Silence of all underruns."""
    samples: int = 0

    @property
    def seconds(self) -> float:
        """Audio that came."""
        return self.samples / self.rate

    def came(self, now: float, samples: NDArray[np.float32]) -> None:
        """These samples `[n]`, of full scale 1, came at `now`."""
        if not len(samples):
            return
        if self.samples and now > self.plays_until + LATE_S:
            self.underruns += 1
            self.missed_s += now - self.plays_until
        starts = max(now, self.plays_until)
        loud = np.flatnonzero(np.abs(samples) >= AUDIBLE)
        if self.audible is None and len(loud):
            self.audible = starts + float(loud[0]) / self.rate
        self.plays_until = starts + len(samples) / self.rate
        self.samples += len(samples)
