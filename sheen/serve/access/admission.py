"""Admission: how many requests a replica holds, and the refusal of the rest.

Owns the limit, the refusals, the retry times in them, and draining. A request over the limit is
refused at once with a time to retry, so that running requests keep their pace. A retry after that
time goes before new requests; otherwise clients that retry without a break would take every place.
A draining replica admits nothing. Knows nothing of what a request contains.
"""

import math
import time
from bisect import insort
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager

from sheen.serve.errors import APIError

LONGEST_WAIT_S = 60
"""Longest Retry-After, seconds: OpenAI's clients ignore a longer one and retry at once."""
DRAIN_RETRY_S = 5
"""Retry-After while draining: another replica, where there is one, takes over sooner."""
FIRST_GUESS_S = 20.0
"""Assumed seconds per request before one has ended. Too long costs the first refused clients some
seconds, too short sends them back to a full queue."""
REMEMBERED = 32
"""Number of departures from which the next ones are estimated."""
CERTAINTY = 1.65
"""Standard deviations above the mean of a sum of random gaps: more than nine in ten stay below."""
LATE_S = 2.0
"""A client that has not retried so long after its time is assumed to have given up."""


class Admission:
    """Admits `limit` requests at a time, of which `slots` run. For one event loop."""

    def __init__(self, limit: int, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: returns seconds."""
        self.draining = False
        self.inside = 0
        self._limit, self._slots, self._clock = limit, slots, clock
        self._promises: list[tuple[float, int]] = []
        """Times at which refused clients are to retry, earliest first, and hashes of their
        requests."""
        self._gaps: deque[float] = deque(maxlen=REMEMBERED)
        """Seconds from one departure to the next, while all slots were taken."""
        self._since = clock()
        """Time of the last departure, or at which the last free slot was taken."""

    def check(self) -> None:
        """Raise APIError if a new request would not be admitted now."""
        if self.draining:
            raise APIError(
                503,
                "the server is stopping; it only finishes running requests",
                code="draining",
                retry_after_s=DRAIN_RETRY_S,
            )
        if not self._has_place():
            raise APIError(
                429,
                f"{self.inside} requests are running or waiting, the limit of this server",
                code="rate_limit_exceeded",
                retry_after_s=self._wait_s(),
            )

    @property
    def idle(self) -> bool:
        """Whether a request would be admitted now and find an unused slot."""
        return not self.draining and self.inside < self._slots

    @contextmanager
    def enter(self, request: Hashable = None) -> Iterator[None]:
        """Hold a place for a request; APIError when there is none. A retry is recognized by an
        equal `request`."""
        kept = self._redeem(hash(request))
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
        """Promise a place to this request. Returns the seconds after which a client that retries it
        is likely to find one."""
        wait_s = self._wait_s()
        insort(self._promises, (self._clock() + wait_s, hash(request)))
        return wait_s

    def _redeem(self, request: int) -> bool:
        """Whether a place is kept for this request. Each promise can be redeemed once."""
        now = self._clock()
        for number, (due, promised) in enumerate(self._promises):
            if due > now:
                break
            if promised == request:
                del self._promises[number]
                return True
        return False

    def _has_place(self) -> bool:
        """Whether there is a place, and those promised will find one too."""
        now = self._clock()
        while self._promises and self._promises[0][0] + LATE_S < now:
            self._promises.pop(0)
        if self.inside < self._slots:
            return True  # an idle slot is kept for nobody
        free = self._limit - self.inside
        return free > 0 and all(
            self._seconds_to(number - free) <= due - now
            for number, (due, _) in enumerate(self._promises, 2)  # 2: first and new
        )

    def _wait_s(self) -> int:
        """Seconds until every promised request has its place and one more is free."""
        places = len(self._promises) + 1 - (self._limit - self.inside)
        return min(LONGEST_WAIT_S, max(1, math.ceil(self._seconds_to(places))))

    def _seconds_to(self, departures: int) -> float:
        """Seconds within which so many requests will leave, nine times in ten. Assumes that they go
        on leaving as the last ones did: one by one at random, or many together after a lull."""
        if departures <= 0:
            return 0.0
        open_s = self._clock() - self._since if self.inside >= self._slots else 0.0
        seconds = FIRST_GUESS_S / self._slots + sum(self._gaps) + open_s
        gap_s = seconds / (1 + len(self._gaps))
        lull_s = max(self._gaps, default=0.0)
        return gap_s * departures + max(CERTAINTY * gap_s * math.sqrt(departures), lull_s)
