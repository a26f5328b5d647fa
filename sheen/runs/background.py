"""Writes in the background, one at a time, while training continues.

Owns the thread, and passes an error in it to the next call. What is written, and when, is the
training loop's.
"""

import logging
from collections import deque
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)

Write = Callable[[], None]


class BackgroundWriter:
    """Runs functions in one thread, one at a time. For a single caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "sheen-save")
        self._writes: list[Future[None]] = []
        self._later: deque[Write] = deque(maxlen=1)

    def start(self, write: Write) -> None:
        """Run `write` after the writes before are finished; raises their error."""
        self.wait()
        self._writes.append(self._pool.submit(write))

    def start_later(self, write: Write) -> None:
        """Run `write` after the write in progress, without waiting for that one here.

        Another one that has not begun yet is dropped, so that at most one holds memory meanwhile.
        """
        self._writes = [past for past in self._writes if not past.done() or past.exception()]
        self._later.append(write)
        self._writes.append(self._pool.submit(self._write_later))

    def _write_later(self) -> None:
        if self._later:  # else it was dropped, and the one in its place is written
            self._later.popleft()()

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise, for the writes that are finished now."""
        return any(write.done() and write.exception() is not None for write in self._writes)

    def wait(self) -> None:
        """Wait for all writes; raises their first error, once."""
        writes, self._writes = self._writes, []
        futures.wait(writes)
        for write in writes:
            write.result()

    def close(self) -> None:
        """As `wait`, but an error is only logged, since the caller may be handling its own."""
        try:
            self.wait()
        except Exception:
            logger.exception("the last checkpoint was not written")
        self._pool.shutdown()
