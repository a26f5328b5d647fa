"""The jobs' pipelines of Ray Data, run block by block in this process.

Ray Data starts processes for every run of a job, and each imports for seconds. This is for tests of
what a job's stages make of rows and leave behind. How blocks get to tasks and actors, which die and
are replaced, other tests of each job show with Ray Data itself.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from sheen.runs import attempts


class _Blocks:
    """As much of a dataset as the jobs use."""

    def __init__(self, blocks: Iterator[pa.Table]) -> None:
        self._blocks = blocks

    def map_batches(
        self,
        stage: Callable[..., Any],
        *,
        batch_format: str,
        fn_constructor_kwargs: dict[str, Any] | None = None,
        **reserved: Any,
    ) -> "_Blocks":
        assert batch_format == "pyarrow"
        do = stage(**fn_constructor_kwargs) if fn_constructor_kwargs is not None else stage
        return _Blocks(map(do, self._blocks))

    def iter_batches(self, **batches: Any) -> Iterator[pa.Table]:
        assert batches == {"batch_size": None, "batch_format": "pyarrow"}
        return self._blocks


class _Actor:
    """An object that is called as an actor is."""

    def __init__(self, instance: object) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self._instance, name)
        return SimpleNamespace(remote=lambda *given: ray.put(method(*given)))


def _count_here(self: attempts.Attempts) -> None:
    self._board = _Actor(attempts._Registry())


def _from_blocks(blocks: Sequence[pa.Table]) -> _Blocks:
    return _Blocks(iter(blocks))


@contextmanager
def in_this_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.data, "from_blocks", _from_blocks)
        patch.setattr(attempts.Attempts, "__init__", _count_here)
        yield
