"""Ray Data's part of a job in this process.

For tests of what a job writes: actors that start for a second of work, each importing torch, took
most of their time. The stages and all around them are the jobs' own, and other tests of each job
run them in workers.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
import ray


class _Blocks:
    """As much of a dataset as the jobs use: blocks that go through one stage after the other."""

    def __init__(self, blocks: Iterable[pa.Table]) -> None:
        self._blocks = blocks

    def map_batches(
        self,
        work: Callable[..., Any],
        *,
        fn_constructor_kwargs: dict[str, Any] | None = None,
        **_placement: Any,
    ) -> "_Blocks":
        if fn_constructor_kwargs is not None:
            work = work(**fn_constructor_kwargs)
        return _Blocks(map(work, self._blocks))

    def iter_batches(self, **_form: Any) -> Iterator[pa.Table]:
        return iter(self._blocks)


@contextmanager
def computed_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.data, "from_blocks", _Blocks)
        yield
