"""What a worker's process keeps of the system's memory."""

import os
import subprocess
import sys

import pytest

from sheen.runs import cluster

FREES_100_MB = """
import psutil
from sheen.runs.cluster import trim_memory

def resident():
    return psutil.Process().memory_info().rss / 1e6

# Every second one is kept: the freed ones lie between them.
blocks = [bytearray(b"x" * 1_000_000) for _ in range(200)]
del blocks[::2]
freed = resident()
trim_memory()
print(freed - resident())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="needs glibc, which can be asked to return memory"
)
def test_freed_memory_that_workers_keep_is_returned_when_asked() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREES_100_MB],
        env=os.environ | cluster.WORKER_ENV, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) > 80
