"""Admission: how many requests a replica holds, and what it says to the rest.

Owns the bound, the refusals and the drain. Beyond the bound a request is told at once to come back,
so that those that run keep their pace; while the replica drains, none is let in. Knows nothing of
what a request is.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sheen.serve.errors import APIError

LONGEST_WAIT_S = 60
DRAIN_RETRY_S = 5
"""Another replica takes over sooner than that, where there is one."""


class Admission:
    """Lets in `limit` requests at a time, of which `slots` run. One event loop's."""

    def __init__(self, limit: int, slots: int) -> None:
        self.draining = False
        self.inside = 0
        self._limit, self._slots = limit, slots
        self._mean_s = 1.0

    def check(self) -> None:
        """APIError if a request would not be let in now."""
        if self.draining:
            raise APIError(
                503,
                "the server is stopping; what it has begun it ends",
                code="draining",
                retry_after_s=DRAIN_RETRY_S,
            )
        if self.inside >= self._limit:
            raise APIError(
                429,
                f"{self.inside} requests are under way, as many as are allowed",
                code="rate_limit_exceeded",
                retry_after_s=self.retry_after_s,
            )

    @contextmanager
    def enter(self) -> Iterator[None]:
        """A place for a request; APIError when there is none."""
        self.check()
        self.inside += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self._mean_s += 0.1 * (time.monotonic() - started - self._mean_s)

    @property
    def retry_after_s(self) -> int:
        """When a place is likely to be free: requests lately took so long, and they leave one by
        one as the slots do."""
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._mean_s / self._slots)))
