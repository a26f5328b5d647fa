"""Turns: who is served next, where several clients each have work of known size.

Fair queueing by virtual time (Demers, Keshav, Shenker, 1989): as if all were served at once, each
with an equal share, the one that would be done first goes first. So one with little work goes
before those with much, whenever it comes, and nobody waits for ever. Knows nothing of what the
work is.
"""

import heapq
import itertools
import threading
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass
class Client:
    """One client: the virtual time at which the work that it asked for so far would be done."""

    until: float = 0.0


class Turns(Generic[Item]):
    """Items in with their client and their work, one by one out. For any threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, float, Item]] = []
        self._number = itertools.count()
        self._now = 0.0
        self._closed = False
        self._wake = threading.Condition()

    def put(self, client: Client, work: float, item: Item) -> None:
        """Raises RuntimeError after `close`."""
        with self._wake:
            if self._closed:
                raise RuntimeError("nobody serves any more")
            client.until = max(self._now, client.until) + work
            heapq.heappush(self._heap, (client.until, next(self._number), work, item))
            self._wake.notify()

    def take(self) -> Item | None:
        """The next item; waits for one. None after `close`."""
        with self._wake:
            while not self._heap and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            share = len(self._heap)
            _, _, work, item = heapq.heappop(self._heap)
            self._now += work / share
            return item

    def close(self) -> list[Item]:
        """Take and give out nothing more. Returns what waits."""
        with self._wake:
            self._closed = True
            left = [item for *_, item in self._heap]
            self._heap.clear()
            self._wake.notify_all()
            return left
