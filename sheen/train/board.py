"""The actor between a training run's driver and its workers: it keeps a stop and a failure.

A module of its own, without torch: its process would otherwise take seconds to start, in every run.
"""

import asyncio
from typing import Any


class Board:
    """Asynchronous, so that one call can wait while others are served."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._failure: str | None = None
        self._workers: list[Any] = []

    async def stop(self) -> list[Any]:
        self._stop.set()
        return self._workers

    async def wait_for_stop(self, worker: Any) -> None:
        self._workers.append(worker)
        await self._stop.wait()

    async def fail(self, message: str) -> None:
        self._failure = self._failure or message

    async def failure(self) -> str | None:
        return self._failure
