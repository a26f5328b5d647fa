"""Admission of requests to the engine's slots, and the queue.

Owns the free slots, the tickets of requests, the queue's limit, and the number of requests in
flight, under one lock that clients, the token thread and the audio threads share; the token thread
sleeps here while there is nothing to do. The first request in the queue waits for a slot and for as
many pages of the KV cache as it may need, and is not overtaken. Refuses a request when the queue is
full.
"""

import threading
from collections import deque
from collections.abc import Callable

from sheen.engine.audio.decoder import Stream
from sheen.engine.types import EngineBusy, Request


class Slots:
    """Which slots are free. Not safe to share between threads without a lock."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))  # the lowest first
        self.count = count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        return self._free.pop()

    def give_back(self, slot: int) -> None:
        assert slot not in self._free, f"slot {slot} is free already"
        self._free.append(slot)
        self._free.sort(reverse=True)


MAX_IN_FLIGHT_PER_SLOT = 2
"""Most requests per slot that have started and whose audio is not complete."""


class Ticket:
    """A submitted request. After `cancel()` its sink gets `Finished("cancelled")` and no more
    samples, unless it has finished. `pages`: most pages of the KV cache that it needs. `waited_s`:
    seconds until it got a slot, None before."""

    def __init__(
        self,
        queue: "RequestQueue",
        request: Request,
        stream: Stream,
        follows: "Ticket | None",
        pages: int,
    ) -> None:
        self.request = request
        self.pages = pages
        self.stream = stream
        self.continues = follows is not None
        self.ended = False
        """Whether it has left its slot, or will never get one."""
        self.waited_s: float | None = None
        self.slot: int | None = None
        """None before admission."""
        self.tokens = 0
        """Audio tokens generated."""
        self._queue = queue
        self._before = follows

    @property
    def rank(self) -> int:
        """Order of admission: first, continuations of a request that has left its slot; then new
        requests; then continuations of a request that still has a slot."""
        if self._before is None:
            return 1
        return 0 if self._before.ended else 2

    def admit(self, slot: int) -> None:
        self.slot, self._before = slot, None

    def cancel(self) -> None:
        self._queue.cancel(self)

    @property
    def runs_out(self) -> float | None:
        """When the audio sent so far will have been played, monotonic time; None before any."""
        return self.stream.playback.runs_out


class RequestQueue:
    """The queue for `slots` slots; at most `limit` tickets wait, in addition to those for which a
    slot and pages are free. `free_pages` returns the number of free pages; the thread that calls
    `take` allocates those of admitted tickets before it calls again.

    Tickets that continue another one, whose audio is playing, are never refused, and go first once
    the other has left its slot. Before that they go last: a long text takes a second slot only
    while no request waits for one, and a few long texts do not fill all slots.
    """

    def __init__(self, slots: int, limit: int, free_pages: Callable[[], int]) -> None:
        self._limit = limit
        self._free_pages = free_pages
        self._wake = threading.Condition()
        self._slots = Slots(slots)
        self._waiting: list[Ticket] = []
        self._cancels: deque[Ticket] = deque()
        self._in_flight = 0
        self._closed = False

    @property
    def slots(self) -> int:
        return self._slots.count

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Number of taken slots."""
        return self._slots.count - self._slots.free

    def put(self, ticket: Ticket) -> None:
        """Raises EngineBusy, and RuntimeError after `close` or `end`."""
        with self._wake:
            if self._closed:
                raise RuntimeError("the engine is closed")
            new = sum(not waiting.continues for waiting in self._waiting)
            if not ticket.continues and new >= self._limit + len(self._admissible(ticket)):
                raise EngineBusy(len(self._waiting))
            self._waiting.append(ticket)
            self._wake.notify()

    def cancel(self, ticket: Ticket) -> None:
        with self._wake:
            self._cancels.append(ticket)
            self._wake.notify()

    def audio_done(self) -> None:
        """Count a request whose audio is complete or abandoned."""
        with self._wake:
            self._in_flight -= 1
            self._wake.notify()

    def give_back(self, slot: int) -> None:
        with self._wake:
            self._slots.give_back(slot)

    def take(self, busy: bool) -> tuple[list[Ticket], list[Ticket]] | None:
        """Newly admitted tickets, and tickets to cancel. Unless the caller is `busy`, waits until
        there are any; None after `close` when the queue is empty."""
        with self._wake:
            while not (busy or self._cancels or self._admissible()):
                if self._closed and not self._waiting:
                    return None
                self._wake.wait()
            cancels = list(self._cancels)
            self._cancels.clear()
            for ticket in cancels:
                if ticket.slot is None and ticket in self._waiting:
                    self._waiting.remove(ticket)
                    self._in_flight += 1
            admitted = self._admissible()
            for ticket in admitted:
                self._waiting.remove(ticket)
                ticket.admit(self._slots.take())
                self._in_flight += 1
        return admitted, cancels

    def close(self) -> None:
        """Accept no more tickets; waiting ones are still admitted."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def end(self) -> list[Ticket]:
        """Accept no more tickets; returns the waiting ones."""
        with self._wake:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._in_flight += len(left)
        return left

    def _admissible(self, *new: Ticket) -> list[Ticket]:
        """Which of the waiting and `new` tickets could be admitted now, in order; called with the
        lock held."""
        spare = MAX_IN_FLIGHT_PER_SLOT * self._slots.count - self._in_flight
        slots = min(self._slots.free, spare)
        if slots <= 0:
            return []
        line = sorted([*self._waiting, *new], key=lambda ticket: ticket.rank)[:slots]
        pages = self._free_pages()
        for place, ticket in enumerate(line):
            pages -= ticket.pages
            if pages < 0:
                return line[:place]
        return line
