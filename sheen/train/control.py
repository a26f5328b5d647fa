"""What the driver and the workers of a run tell each other while it runs.

Owns two messages: stop (the driver was asked to end, save first) and failed (a worker met what no
restart will mend); and which workers are there to hear the first. All of it lives in one small
actor beside the driver.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from safetensors import SafetensorError

logger = logging.getLogger(__name__)

Loop = TypeVar("Loop")

FINAL = (
    ValueError, TypeError, AttributeError, LookupError, ImportError, NotImplementedError,
    SafetensorError,
)  # fmt: skip
"""What a worker raises before its first step and would raise again after every restart."""


class _Board:
    """Asynchronous, so that one call can wait while others come."""

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


class Control:
    """A handle to the board; made by the driver, given to the workers."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        options = {"label_selector": {"ray.io/node-id": node}}
        self._board: Any = ray.remote(_Board).options(num_cpus=0, **options).remote()

    def watched(self) -> "Watch":
        """For a worker: what `stop_requested` needs to answer without a wait."""
        return Watch(self._board)

    def stop(self) -> bool:
        """Ask the workers to save and end after their step; whether any of them is alive."""
        return any(_is_alive(worker) for worker in ray.get(self._board.stop.remote()))

    def failure(self) -> str | None:
        """What a worker said no restart will mend, if any did."""
        failure: str | None = ray.get(self._board.failure.remote())
        return failure

    def start(self, make: Callable[..., Loop], arguments: dict[str, Any]) -> Loop | None:
        """`make(**arguments)` in a worker, or None where no restart would help: then it has said
        so, and the worker returns."""
        try:
            return make(**arguments)
        except FINAL as error:
            logger.exception("this worker cannot start")
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            ray.get(self._board.fail.remote(f"{kind}{error}"))
            return None


def _is_alive(worker: Any) -> bool:
    try:
        ray.get(worker.__ray_ready__.remote(), timeout=5.0)
    except RayActorError:
        return False
    except GetTimeoutError:
        return True
    return True


class Watch:
    """A worker's side of `Control`."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._stop: Any = board.wait_for_stop.remote(ray.get_runtime_context().current_actor)

    def stop_requested(self) -> bool:
        return bool(ray.wait([self._stop], timeout=0)[0])

    def fail(self, message: str) -> None:
        """Say why the run must end; the worker then returns."""
        ray.get(self._board.fail.remote(message))
