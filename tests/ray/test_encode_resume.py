"""An encoding that is killed loses nothing, repeats nothing, and ends as if it had never been.

The real job and its real workers; `make soak` also kills workers and nodes, on two nodes, and each
three times at random moments.
"""

import json
import os
import random
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from helpers.example import CODEC, NEW_VOICE, RATE, ROOT, clips_of, copy_corpus, load_script
from helpers.killed import KINDS, WAIT_S, committed, interrupt, job, until
from helpers.workers import standing_still, workers
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run

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


def test_an_encoding_that_loses_its_worker_and_then_its_driver_ends_as_if_it_had_not(
    ray_cluster: None, corpus: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Ray starts another worker; what was committed before and since is not done again."""
    output = tmp_path / "killed" / "codes"
    output.parent.mkdir()
    address = ray.get_runtime_context().gcs_address
    flags, log = [*arguments(corpus, output), "--num-workers", "1"], output.parent / "job.log"
    with job("encode", flags, log, address) as process:
        until(lambda: committed(output), process, log)
        first = workers("EncodeWorker")
        assert len(first) == 1
        first[0].kill()
        psutil.wait_procs(first, timeout=WAIT_S)
        before = len(committed(output))
        until(lambda: set(workers("EncodeWorker")) - set(first), process, log)
        encoders = workers("EncodeWorker")
        until(lambda: len(committed(output)) > before, process, log)
        with standing_still(encoders):
            process.kill()
            process.wait(WAIT_S)
    _, alive = psutil.wait_procs(encoders + workers("write_blocks"), timeout=WAIT_S)
    assert not alive
    assert not (output / "report.json").exists(), "it was killed before its end"
    check(corpus, output, expected)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoding_killed_at_any_moment_ends_as_if_it_had_not_been(
    kind: str, corpus: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    draws = random.Random(f"{os.environ['TEST_SHEEN_SEED']} {kind}")
    for turn in range(3):
        when = draws.randrange(1, BLOCKS - 1)
        print(f"{kind}, turn {turn}: after {when} blocks")
        output = tmp_path / f"{kind}-{turn}" / "codes"
        output.parent.mkdir()
        flags, log = arguments(corpus, output), output.parent / "job.log"
        interrupt(kind, "encode", flags, log, "EncodeWorker", output, when)
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
        assert "to start again, delete this one" in error
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
