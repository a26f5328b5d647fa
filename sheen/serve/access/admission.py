"""Admission: how many requests a replica holds, and what it says to the rest.

Owns the bound, the refusals, the promises in them, and the drain. Beyond the bound a request is
told at once when to come back, so that those that run keep their pace. Whoever comes back then goes
before whoever comes for the first time, or those who ask without a break would take every place.
While the replica drains, none is let in. Knows nothing of what a request is.
"""

import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from sheen.serve.errors import APIError

LONGEST_WAIT_S = 60
"""OpenAI's clients do not heed what is longer, and come back at once."""
DRAIN_RETRY_S = 5
"""Another replica takes over sooner than that, where there is one."""
FIRST_GUESS_S = 20.0
"""How long a request takes, before one has ended. Too long costs the first refused some seconds,
too short sends them back to a full queue."""
REMEMBERED = 32
"""Departures by which the next ones are reckoned."""
CERTAINTY = 1.65
"""Standard deviations of a sum of random gaps: more than nine of ten stay within."""
LATE_S = 2.0
"""A client that is not back so long after its time has given up."""


class Admission:
    """Lets in `limit` requests at a time, of which `slots` run. One event loop's."""

    def __init__(self, limit: int, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds."""
        self.draining = False
        self.inside = 0
        self._limit, self._slots, self._clock = limit, slots, clock
        self._promises: list[tuple[float, int]] = []
        """When those who were refused will be back, the earliest first, and how they are known."""
        self._gaps: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds from one departure to the next, while all slots were taken."""
        self._since = clock()
        """The last departure, or since when all slots are taken."""

    def check(self) -> None:
        """APIError if a request that comes for the first time would not be let in now."""
        if self.draining:
            raise APIError(
                503,
                "the server is stopping; what it has begun it ends",
                code="draining",
                retry_after_s=DRAIN_RETRY_S,
            )
        if not self._has_place():
            raise APIError(
                429,
                f"{self.inside} requests are under way, as many as are allowed",
                code="rate_limit_exceeded",
                retry_after_s=self._wait_s(),
            )

    @property
    def idle(self) -> bool:
        """Whether a request would be let in now, and find a slot that nobody uses."""
        return not self.draining and self.inside < self._slots

    @contextmanager
    def enter(self, request: Hashable = None) -> Iterator[None]:
        """A place for a request; APIError when there is none. Who comes back is known by asking for
        the same: `request`."""
        kept = self._claim(hash(request))
        if not kept or self.draining or self.inside >= self._limit:
            try:
                self.check()
            except APIError as refusal:
                if refusal.status == 429:
                    refusal.retry_after_s = self.promise(request)
                raise
        self.inside += 1
        if self.inside == self._slots:
            self._since = self._clock()
        try:
            yield
        finally:
            if self.inside >= self._slots:
                self._gaps.append(self._clock() - self._since)
                self._since = self._clock()
            self.inside -= 1

    def promise(self, request: Hashable = None) -> int:
        """Seconds after which a client that comes back with this request is likely to find a place,
        which is kept for it."""
        wait_s = self._wait_s()
        insort(self._promises, (self._clock() + wait_s, hash(request)))
        return wait_s

    def _claim(self, request: int) -> bool:
        """Whether a place is kept for this request; it is so once."""
        now = self._clock()
        for number, (due, promised) in enumerate(self._promises):
            if due > now:
                break
            if promised == request:
                del self._promises[number]
                return True
        return False

    def _has_place(self) -> bool:
        """Whether there is a place, and whoever was told to come back will find one too."""
        now = self._clock()
        while self._promises and self._promises[0][0] + LATE_S < now:
            self._promises.pop(0)
        if self.inside < self._slots:
            return True  # an idle slot is kept for nobody
        free = self._limit - self.inside
        return free > 0 and all(
            self._seconds_to(number - free) <= due - now
            for number, (due, _) in enumerate(self._promises, 2)  # the first, and who asks now
        )

    def _wait_s(self) -> int:
        """Until those who were told to come back have their places, and one more is free."""
        places = len(self._promises) + 1 - (self._limit - self.inside)
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._seconds_to(places))))

    def _seconds_to(self, departures: int) -> float:
        """In which so many requests will leave, nine times in ten. They are taken to go on leaving
        as the last ones did, one by one at random or many together after a lull."""
        if departures <= 0:
            return 0.0
        open_s = self._clock() - self._since if self.inside >= self._slots else 0.0
        seconds = FIRST_GUESS_S / self._slots + sum(self._gaps) + open_s
        gap_s = seconds / (1 + len(self._gaps))
        lull_s = max(self._gaps, default=0.0)
        return gap_s * departures + max(CERTAINTY * gap_s * math.sqrt(departures), lull_s)
