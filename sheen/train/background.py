"""Writes in the background, one at a time, while training continues.

Owns the thread, and passes an error in it to the next call. What is written, and when, is the
training loop's.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs functions in one thread, one at a time. For a single caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "sheen-save")
        self._running: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Run `write` after the write before is finished; raises the error of that one."""
        self.wait()
        self._running = self._pool.submit(write)

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise now."""
        running = self._running
        return running is not None and running.done() and running.exception() is not None

    def wait(self) -> None:
        """Wait for the write in progress; raises its error, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """As `wait`, but an error is only logged, since the caller may be handling its own."""
        try:
            self.wait()
        except Exception:
            logger.exception("the last checkpoint was not written")
        self._pool.shutdown()
