"""One write at a time beside the training: the steps go on while a file takes its time.

Owns the thread, and that an error in it is not lost: it is raised where the training next asks.
What is written, and when, is the training loop's.
"""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

logger = logging.getLogger(__name__)


class BackgroundWriter:
    """Runs functions in one thread, never two at a time. Its methods are for one caller."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "sheen-save")
        self._running: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Run it, once the write before is done; raises that one's error."""
        self.wait()
        self._running = self._pool.submit(write)

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise, as far as is known now."""
        running = self._running
        return running is not None and running.done() and running.exception() is not None

    def wait(self) -> None:
        """Until nothing is written; raises the error of what was, once."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """As `wait`, after an error of the caller's own: one more is only logged."""
        try:
            self.wait()
        except Exception:
            logger.exception("the last checkpoint was not written")
        self._pool.shutdown()
