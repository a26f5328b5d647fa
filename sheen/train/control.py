"""What the driver and the workers of a run tell each other while it runs.

Owns two messages: stop (the driver was asked to end, save first) and failed (a worker met what no
restart will mend). Both live in one small actor beside the driver.
"""

import asyncio
from typing import Any

import ray


class _Board:
    """Asynchronous, so that one call can wait while others come."""

    def __init__(self) -> None:
        self._stop = asyncio.Event()
        self._failure: str | None = None

    async def stop(self) -> None:
        self._stop.set()

    async def wait_for_stop(self) -> None:
        await self._stop.wait()

    async def fail(self, message: str) -> None:
        self._failure = self._failure or message

    async def failure(self) -> str | None:
        return self._failure


class Control:
    """A handle to the board; made by the driver, given to the workers."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        options = {"label_selector": {"ray.io/node-id": node}}
        self._board: Any = ray.remote(_Board).options(num_cpus=0, **options).remote()

    def watched(self) -> "Watch":
        """For a worker: what `stop_requested` needs to answer without a wait."""
        return Watch(self._board)

    def stop(self) -> None:
        """Ask the workers to save and end after their step."""
        ray.get(self._board.stop.remote())

    def failure(self) -> str | None:
        """What a worker said no restart will mend, if any did."""
        failure: str | None = ray.get(self._board.failure.remote())
        return failure


class Watch:
    """A worker's side of `Control`."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._stop: Any = board.wait_for_stop.remote()

    def stop_requested(self) -> bool:
        return bool(ray.wait([self._stop], timeout=0)[0])

    def fail(self, message: str) -> None:
        """Say why the run must end; the worker then returns."""
        ray.get(self._board.fail.remote(message))
