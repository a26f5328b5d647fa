"""What has gathered since the last line of metrics: sums over steps, and seconds of training.

Owns the clock, which stands still while a run evaluates or saves, and what a checkpoint keeps of
both, so that the interval of a killed run goes on where it was. What is summed, and when a line is
due, is the business of the two training loops.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sheen.train.ranks import Ranks


class Interval:
    """One rank's sums, float64 `[size]` on `device`, and the seconds that they took.

    The clock runs from the start.
    """

    def __init__(self, ranks: Ranks, size: int, device: torch.device) -> None:
        self._ranks = ranks
        self._sums = torch.zeros(size, dtype=torch.float64, device=device)
        self._seconds = 0.0
        self._since = time.monotonic()

    def add(self, values: Tensor) -> None:
        """Count `[size]` of a row or a step."""
        self._sums += values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time of the context is not the training's."""
        self._seconds += time.monotonic() - self._since
        yield
        self._since = time.monotonic()

    def end(self) -> tuple[Tensor, float]:
        """The sums over ranks, on the host, and the seconds; the next interval begins.

        Every rank must call it.
        """
        sums = self._ranks.sum(self._sums)
        now = time.monotonic()
        seconds = self._seconds + now - self._since
        self._sums.zero_()
        self._seconds, self._since = 0.0, now
        return sums, seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps. Every rank must call it, while the clock is paused."""
        return {"recent": self._ranks.sum(self._sums), "seconds": self._seconds}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; any number of workers may."""
        if self._ranks.first:  # the sums are of all ranks already
            self._sums += state["recent"].to(self._sums.device)
            self._seconds = state["seconds"]
