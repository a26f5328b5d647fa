"""Slow work on recordings that requests share: encoding and transcribing.

Owns the sharing: concurrent requests for one recording wait for one result, the latest results are
kept, and further recordings are refused with 429 while MAX_WAITING are waiting. Does not know what
the work is.
"""

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from sheen.serve.errors import APIError

Result = TypeVar("Result")
KEPT = 256
"""Recordings whose results are kept, some kilobytes each."""
MAX_WAITING = 16
"""Recordings that may wait; about a second each, on a CPU."""


class SharedWork(Generic[Result]):
    """Results by the hash of a recording's bytes. For one event loop at a time."""

    def __init__(self, done_to_them: str) -> None:
        """`done_to_them`: for the message of a refusal, such as "encoded"."""
        self._done_to_them = done_to_them
        self._results: OrderedDict[bytes, Future[Result]] = OrderedDict()

    async def result(self, data: bytes, start: Callable[[], Future[Result]]) -> Result:
        """The result for a recording; `start` begins the work. Raises APIError and the work's
        errors, which are not kept."""
        digest = hashlib.sha256(data).digest()
        coming = self._results.get(digest)
        if coming is None or (coming.done() and coming.exception()):
            waiting = sum(not future.done() for future in self._results.values())
            if waiting >= MAX_WAITING:
                raise too_many(waiting, self._done_to_them)
            coming = self._results[digest] = start()
        self._results.move_to_end(digest)
        while len(self._results) > KEPT:
            self._results.popitem(last=False)
        ours = asyncio.wrap_future(coming)
        ours.add_done_callback(lambda _: self._drop_failed(digest, coming))
        # Shielded: a cancelled request must not cancel the work for others.
        return await asyncio.shield(ours)

    def _drop_failed(self, digest: bytes, future: Future[Result]) -> None:
        """Keep no error: its traceback holds the recording and what was decoded of it."""
        failed = future.cancelled() or future.exception() is not None
        if failed and self._results.get(digest) is future:
            del self._results[digest]


def too_many(waiting: int, done_to_them: str) -> APIError:
    """For one recording more than may wait."""
    return APIError(
        429,
        f"{waiting} recordings are being {done_to_them}",
        code="rate_limit_exceeded",
        retry_after_s=max(1, waiting // 2),
    )
