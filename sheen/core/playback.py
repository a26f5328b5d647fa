"""A listener who plays from the first chunk on: when the audio in hand runs out, and how often.

Owns that reckoning, which the order of work in the engine and the counts of the server share.
"""

import time
from dataclasses import dataclass, field


@dataclass
class Playback:
    """One stream as heard. Times are of `time.monotonic`, seconds."""

    opened: float = field(default_factory=time.monotonic)
    runs_out: float | None = None
    """When everything that came will have been heard; None before the first audio, unless there was
    audio of the same listener before."""
    first_audio_s: float | None = None
    """From `opened` to the first samples."""
    seconds: float = 0.0
    """Audio that came."""
    underruns: int = 0
    """Chunks that came after the listener had run out."""

    def came(self, seconds: float) -> None:
        """So much audio has come now."""
        now = time.monotonic()
        if self.first_audio_s is None:
            self.first_audio_s = now - self.opened
        if self.runs_out is not None and now > self.runs_out:
            self.underruns += 1
        self.runs_out = max(self.runs_out or now, now) + seconds
        self.seconds += seconds
