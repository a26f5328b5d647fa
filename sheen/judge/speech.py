"""What can be measured of one spoken clip without knowing its words: level, pauses, clipping.

Owns the measures and their limits. Nothing here is compared with anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sheen.core.audio import to_pcm16

_FRAME_S = 0.02
_SILENT_DB = 40.0
"""A frame this far under the loudest is silence: speech sounds lie within some 30 dB, and the noise
of a codec between words lies below."""
_LEAST_LEVEL = 1e-4  # RMS of full scale, -80 dB: a clip that is nowhere louder is all silence
_FULL_SCALE = 32767
"""Of 16-bit PCM; a sample that reaches it is clipped."""


@dataclass(frozen=True)
class Sound:
    """Seconds and shares of one clip.

    `speaking` is from the first sounding frame to the end of the last, pauses included; `pause` is
    the longest silence between them. `clipped` is the share of samples at full scale.
    """

    seconds: float
    speaking: float
    pause: float
    clipped: float

    @property
    def silence(self) -> float:
        """The share of the clip before the first sound and after the last; 1 for a silent clip."""
        return 1 - self.speaking / self.seconds if self.seconds else 1.0


def measure_sound(waveform: NDArray[np.float32], sample_rate: int) -> Sound:
    """Measure a clip `[n]`, in -1..1 at `sample_rate` Hz. An empty clip is silent."""
    seconds = len(waveform) / sample_rate
    size = round(_FRAME_S * sample_rate)
    count = -(-len(waveform) // size)
    if not count:
        return Sound(0.0, 0.0, 0.0, 0.0)
    padded = np.zeros(count * size)
    padded[: len(waveform)] = waveform
    levels = np.sqrt((padded.reshape(count, size) ** 2).mean(axis=1))
    threshold = max(_LEAST_LEVEL, levels.max() * 10 ** (-_SILENT_DB / 20))
    sounding = np.flatnonzero(levels >= threshold)
    clipped = float((np.abs(to_pcm16(waveform)) == _FULL_SCALE).mean())
    if not len(sounding):
        return Sound(seconds, 0.0, 0.0, clipped)
    end = min(seconds, (sounding[-1] + 1) * size / sample_rate)
    pause = max(0, int(np.diff(sounding, prepend=sounding[0] - 1).max()) - 1)
    return Sound(
        seconds, float(end - sounding[0] * size / sample_rate), pause * size / sample_rate, clipped
    )
