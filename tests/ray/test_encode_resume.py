"""An encoding that is killed loses nothing, repeats nothing, and ends as if it had never been.

The real job and its real workers; `make soak` also kills workers and nodes, on two nodes, and each
three times at random moments.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from ray.cluster_utils import Cluster

from helpers.example import CODEC, NEW_VOICE, RATE, ROOT, clips_of, copy_corpus, load_script
from helpers.workers import standing_still, workers
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run

WAIT_S = 300
ROWS = 40
BLOCKS = ROWS // 4

main = load_script(ROOT / "jobs" / "encode.py").main


def make_corpus(folder: Path) -> Path:
    """Recordings of the example, and one that is no recording, so that rejects are written too."""
    # At the codec's rate: a worker that resamples starts twice as long.
    copy_corpus(clips_of(NEW_VOICE)[: ROWS - 1], folder, RATE)
    (folder / "wavs" / "noise.wav").write_bytes(b"no sound" * 100)
    lines = (folder / "metadata.csv").read_text("utf-8").splitlines()
    lines.insert(30, "noise|not a recording")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("resume") / "in")


def arguments(corpus: Path, output: Path) -> list[str]:
    return ["--input", str(corpus), "--output", str(output), "--codec", str(CODEC)]


def rows_of(output: Path) -> list[dict[str, Any]]:
    """All rows, in the order of the corpus."""
    files = sorted((output / "rows").glob("status=*/*.parquet"))
    rows = [
        row | {"status": file.parent.name}
        for file in files
        for row in pq.ParquetFile(file).read().to_pylist()
    ]
    return sorted(rows, key=lambda row: int(row["key"]))


def committed(output: Path) -> list[Path]:
    """The blocks that are committed and not yet merged."""
    return list((output / "blocks").glob("*.parquet"))


@pytest.fixture(scope="module")
def whole(ray_cluster: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an uninterrupted run of two workers."""
    output = tmp_path_factory.mktemp("whole") / "codes"
    fields = {"input": str(corpus), "output": str(output), "codec": str(CODEC)}
    run(EncodeConfig(**fields, num_workers=2))
    return output


@pytest.fixture(scope="module")
def expected(whole: Path) -> list[dict[str, Any]]:
    rows = rows_of(whole)
    assert [row["key"] for row in rows] == list(range(ROWS))
    return rows


@contextmanager
def job(corpus: Path, output: Path, address: str, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The job in a process of its own."""
    environment = os.environ | {"RAY_ADDRESS": address}
    command = [sys.executable, str(ROOT / "jobs" / "encode.py"), *arguments(corpus, output)]
    log = output.parent / "job.log"
    with log.open("ab") as file, subprocess.Popen(
        [*command, *more],
        stdout=file, stderr=file, env=environment, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def until(what: Callable[[], object], process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        log = (output.parent / "job.log").read_text("utf-8", "replace")
        assert process.poll() is None, log[-3000:]
        assert time.monotonic() < deadline, log[-3000:]
        time.sleep(0.02)  # between two looks


def interrupt(kind: str, corpus: Path, output: Path, when: int) -> None:
    """Run on two nodes until `when` blocks are written, kill, and let the run end if it can."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        with job(corpus, output, cluster.address) as process:
            until(lambda: len(committed(output)) >= when, process, output)
            if kind == "driver":
                process.kill()
            elif kind == "worker":
                for worker in workers("EncodeWorker")[:1]:
                    worker.kill()
            else:
                cluster.remove_node(node, allow_graceful=False)
            process.wait(WAIT_S)
    finally:
        cluster.shutdown()


def check(corpus: Path, output: Path, expected: list[dict[str, Any]]) -> None:
    """Of what a run has left: going on with it ends as `expected`."""
    before, report = committed(output), output / "report.json"
    finished = report.exists()
    assert main([*arguments(corpus, output), "--num-workers", "1"]) == 0
    assert rows_of(output) == expected  # row for row, and none twice
    assert not committed(output)
    if not finished:
        done = json.loads(report.read_text("utf-8"))["this_run"]["rows"]
        assert done == ROWS - ROWS // BLOCKS * len(before), "committed work was done again"


def test_a_killed_encoding_ends_as_if_it_had_not_been(
    ray_cluster: None, corpus: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    output = tmp_path / "driver" / "codes"
    output.parent.mkdir()
    address = ray.get_runtime_context().gcs_address
    with job(corpus, output, address, "--num-workers", "1") as process:
        until(lambda: workers("EncodeWorker"), process, output)
        encoders = workers("EncodeWorker")
        until(lambda: len(committed(output)) >= 3, process, output)
        with standing_still(encoders):
            process.kill()
            process.wait(WAIT_S)
    _, alive = psutil.wait_procs(encoders + workers("write_blocks"), timeout=WAIT_S)
    assert not alive
    assert not (output / "report.json").exists(), "it was killed before its end"
    check(corpus, output, expected)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["driver", "worker", "node"])
def test_an_encoding_killed_at_any_moment_ends_as_if_it_had_not_been(
    kind: str, corpus: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    draws = random.Random(f"{os.environ['SHEEN_TEST_SEED']} {kind}")
    for turn in range(3):
        when = draws.randrange(1, BLOCKS - 1)
        print(f"{kind}, turn {turn}: after {when} blocks")
        output = tmp_path / f"{kind}-{turn}" / "codes"
        output.parent.mkdir()
        interrupt(kind, corpus, output, when)
        finished = (output / "report.json").exists()
        assert finished or len(committed(output)) >= when
        assert finished or kind != "worker", "a worker that dies is replaced"
        check(corpus, output, expected)


def test_a_finished_encoding_does_nothing_and_another_is_refused(
    whole: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    free = ["--num-workers", "2", "--batch-seconds", "60"]  # decides no row
    assert main([*arguments(corpus, whole), *free]) == 0
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    capsys.readouterr()
    for changed, difference in (
        (["--limit", "9"], "limit was None, now 9"),
        (["--min-seconds", "0.3"], "min_seconds was 0.2, now 0.3"),
    ):
        assert main([*arguments(corpus, whole), *changed]) == 2
        error = capsys.readouterr().err
        assert difference in error
        assert "--overwrite" in error
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
