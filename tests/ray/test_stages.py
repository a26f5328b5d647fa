"""Tasks that feed workers run in processes of their own, at what the two reserve."""

import os

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from sheen.runs.cluster import TASK_CPUS, WORKER_CPUS


def test_ray_data_does_not_join_a_task_with_the_worker_that_it_feeds(ray_cluster: None) -> None:
    class Worker:  # here, so that Ray sends it whole: its processes cannot import the tests
        def __call__(self, table: pa.Table) -> pa.Table:
            return table.append_column("worker", pa.array([os.getpid()] * len(table)))

    def task(table: pa.Table) -> pa.Table:
        return table.append_column("task", pa.array([os.getpid()] * len(table)))

    rows = (
        ray.data.from_blocks([pa.table({"key": [key]}) for key in range(4)])
        .map_batches(task, batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS)
        .map_batches(
            Worker,
            compute=ActorPoolStrategy(size=1),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=WORKER_CPUS,
        )
        .take_all()
    )
    assert len(rows) == 4
    assert not {row["task"] for row in rows} & {row["worker"] for row in rows}
