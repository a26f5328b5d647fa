"""Jobs in processes of their own, on clusters of two nodes, of which something is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ray.cluster_utils import Cluster

from helpers.example import ROOT
from helpers.workers import workers

WAIT_S = 300
KINDS = ("driver", "worker", "node")


@contextmanager
def job(
    name: str, flags: Sequence[str], log: Path, address: str
) -> Iterator[subprocess.Popen[bytes]]:
    """jobs/NAME.py on the cluster at `address`."""
    command = [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]
    environment = os.environ | {"RAY_ADDRESS": address}
    with log.open("ab") as file, subprocess.Popen(
        command, stdout=file, stderr=file, env=environment, start_new_session=True
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def until(what: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        said = log.read_text("utf-8", "replace")
        assert process.poll() is None, said[-3000:]
        assert time.monotonic() < deadline, said[-3000:]
        time.sleep(0.02)  # between two looks


def committed(folder: Path) -> list[Path]:
    """The blocks that are committed and not yet merged."""
    return list((folder / "blocks").glob("*.parquet"))


def interrupt(
    kind: str, name: str, flags: Sequence[str], log: Path, worker: str, folder: Path, when: int
) -> None:
    """Run on two nodes until `when` blocks are in `folder`, kill a driver, a worker with `worker`
    in its title or a node, and let the run end if it can."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with job(name, flags, log, cluster.address) as process:
            until(lambda: len(committed(folder)) >= when, process, log)
            if kind == "driver":
                process.kill()
            elif kind == "worker":
                for each in workers(worker)[:1]:
                    each.kill()
            else:
                cluster.remove_node(node, allow_graceful=False)
            process.wait(WAIT_S)
    finally:
        cluster.shutdown()
