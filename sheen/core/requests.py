"""What an engine is asked for, and its answer when it has no room."""

from collections.abc import Sequence
from dataclasses import dataclass

from sheen.core.sampling import Sampling
from sheen.core.tokens import TokenLayout


@dataclass(frozen=True)
class Request:
    """`prompt` ends in `<audio_start>`; `min_frames` to `max_frames` frames are generated."""

    prompt: Sequence[int]
    max_frames: int
    sampling: Sampling
    min_frames: int = 1

    def positions(self, layout: TokenLayout) -> int:
        """Positions of a slot that it needs."""
        return len(self.prompt) + self.max_frames * layout.tokens_per_frame


class EngineBusy(RuntimeError):
    """The queue is full; `waiting` requests are before this one."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"{waiting} requests are waiting already")
        self.waiting = waiting
