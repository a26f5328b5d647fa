"""A job's actors as tasks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pytest
from ray.data import Dataset, TaskPoolStrategy


@contextmanager
def as_tasks(worker: type) -> Iterator[None]:
    """Jobs that run meanwhile call this worker of their pipeline in tasks.

    Ray Data starts a process for each actor of each run, which imports for seconds; tasks run in
    processes that are there already. For tests of what a job reads and writes, not of how its
    workers start and die.
    """
    map_batches = Dataset.map_batches

    def mapped(data: Dataset, function: Any, **settings: Any) -> Dataset:
        if function is not worker:
            return map_batches(data, function, **settings)
        given = settings.pop("fn_constructor_kwargs")

        def task(table: pa.Table) -> pa.Table:
            made: pa.Table = worker(**given)(table)
            return made

        settings["compute"] = TaskPoolStrategy(size=settings["compute"].max_size)
        return map_batches(data, task, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Dataset, "map_batches", mapped)
        yield
