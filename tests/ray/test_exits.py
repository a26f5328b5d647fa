"""How the jobs end: one line and a status for what a user can mend; the same command resumes."""

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from helpers.corpora import own_line
from helpers.example import CODEC, ROOT, load_script
from helpers.jobs import JOBS, arguments
from helpers.tasks import as_tasks
from helpers.workers import standing_still, workers
from sheen.encode.stages import EncodeWorker
from sheen.runs.cluster import Stopped, run_job

encode = load_script(ROOT / "jobs" / "encode.py").main


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("--x: no"), 2, "job: error: --x: no"),
        (OSError(errno.EROFS, "Read-only file system", "/o"), 2, "Read-only file system: '/o'"),
        (OSError(errno.ENOSPC, "No space", "/o"), 2, "'/o'. Free space, then the same command"),
        (KeyboardInterrupt(), 130, "job: interrupted; the same command resumes"),
        (Stopped(signal.SIGTERM, "stopped"), 143, "job: stopped"),
        (SystemExit(int(signal.SIGTERM)), 143, "job: stopped by SIGTERM; the same command resumes"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job() -> int:
        raise error

    assert run_job("job", job) == status
    said = "".join(capsys.readouterr()).splitlines()
    assert len(said) == 1
    assert line in said[0]


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    for error in (RuntimeError("x"), KeyError("x")):
        with pytest.raises(type(error)):
            run_job("job", lambda error=error: (_ for _ in ()).throw(error))  # type: ignore[misc]


@pytest.mark.parametrize("job", JOBS)
def test_an_output_that_cannot_be_written_is_one_line(
    job: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A file is where a folder would have to be, which not even root can write below."""
    monkeypatch.chdir(tmp_path)
    line = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'
    (tmp_path / "codes.jsonl").write_text(line * 3)
    main = load_script(ROOT / "jobs" / f"{job}.py").main
    capsys.readouterr()
    assert main(arguments(job, base, tmp_path / "codes.jsonl" / "out")) == 2
    said = capsys.readouterr().err
    assert "codes.jsonl" in own_line(said, job)
    assert "Traceback" not in said


def words_for(corpus: Path, output: Path) -> list[str]:
    return [
        *("--input", str(corpus), "--output", str(output), "--codec", str(CODEC)),
        "--num-workers",
        "1",
    ]


def keys_in(output: Path) -> list[Any]:
    paths = (output / "rows").rglob("*.parquet")
    return sorted(row["key"] for path in paths for row in pq.ParquetFile(path).read().to_pylist())


def test_a_worker_that_cannot_write_ends_the_encoding_with_one_line(
    corpus: Path, encoded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The log of this process may still go to what captured another test's.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    output = Path(shutil.copytree(encoded, tmp_path / "out"))
    (output / "report.json").unlink()
    (output / "rows").rename(tmp_path / "aside")
    # No folder can be made there, which a worker is the first to find out.
    (output / "blocks").symlink_to(tmp_path / "nowhere" / "blocks")
    capfd.readouterr()
    with as_tasks(EncodeWorker):
        assert encode(words_for(corpus, output)) == 2
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err
    assert "out/blocks" in own_line(said.err, "encode")


# A killed one resumes in tests/ray/test_encode_resume.py, and the line is above.
@pytest.mark.soak
@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")]
)
def test_an_interrupted_encoding_says_so_and_resumes(
    number: int, told: str, ray_cluster: None, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    words = [sys.executable, str(ROOT / "jobs" / "encode.py"), *words_for(corpus, output)]
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address, "PYTHONPATH": str(ROOT)
    }  # fmt: skip
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(
        [*words, "--shifts", "4"], stdout=file, stderr=file, env=environment
    ) as process:  # fmt: skip
        while process.poll() is None and not (encoders := workers("EncodeWorker")):
            time.sleep(0.02)
        while process.poll() is None and not list(output.rglob("*.parquet")):
            time.sleep(0.02)
        with standing_still(encoders):
            process.send_signal(number)
    said = log.read_text()
    assert process.returncode == 128 + number, said[-3000:]
    assert own_line(said, "encode") == f"jobs/encode.py: {told}; the same command resumes"
    assert "Traceback" not in said
    assert encode([*words_for(corpus, output), "--shifts", "4"]) == 0
    keys = keys_in(output)
    assert [keys.count(key) for key in sorted(set(keys))] == [4] * 16
