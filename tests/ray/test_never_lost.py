"""A training run that is killed, stopped, starved of disk or given nonsense loses nothing."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from helpers.example import ROOT, load_script
from helpers.resident import Resident
from helpers.training import metrics, train_config, weights
from helpers.workers import LOOPBACK, listening, standing_still, workers
from sheen.runs.cluster import Stopped
from sheen.train.config import TrainConfig
from sheen.train.job import run as train

TITLE = "RayTrainWorker"
main = load_script(ROOT / "jobs" / "train.py").main
TIMED = {"target_tokens_per_second", "tokens_per_second", "seconds_left"}


def curve(output: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in metrics(output)]


def assert_same_end(output: Path, trained: Path) -> None:
    assert curve(output) == curve(trained)
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, weights(output)[name]), name


def wait_for(condition: Callable[[], bool], alive: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and alive() and time.monotonic() < deadline:
        time.sleep(0.02)


@contextmanager
def meanwhile(act: Callable[[Callable[[], bool]], None]) -> Iterator[None]:
    """`act(goes_on)` in a thread; `goes_on()` until the block has ended."""
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act, lambda: not ended.is_set())
        try:
            yield
        finally:
            ended.set()
        acting.result()


def words_of(config: TrainConfig) -> list[str]:
    words = []
    for name, value in config.model_dump(exclude_unset=True, exclude_none=True).items():
        flag = f"--{name.replace('_', '-')}"
        for word in value if isinstance(value, list) else [value]:
            words += [flag] if word is True else [flag, str(word)]
    return words


@contextmanager
def job(config: TrainConfig, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The train job as a process of its own, on the tests' cluster."""
    words = [sys.executable, str(ROOT / "jobs" / "train.py"), *words_of(config)]
    address = ray.get_runtime_context().gcs_address
    with (
        log.open("w") as file,
        subprocess.Popen(
            words, env=os.environ | {"RAY_ADDRESS": address}, stdout=file, stderr=file, cwd=ROOT
        ) as process,
    ):
        yield process


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 128 + signal.SIGTERM, marks=pytest.mark.soak),
    ],
)
def test_a_run_that_loses_its_worker_and_then_its_driver_ends_the_same(
    number: int, status: int, resident: Resident, encoded: Path, base: Path, trained: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Ray Train starts another worker; a new driver finds the run by its name. What SIGTERM ends
    has saved its last step."""
    config = train_config(encoded, base, tmp_path / "out", max_failures=1)
    saved = tmp_path / "out" / "run" / "checkpoints.json"
    lines = tmp_path / "out" / "metrics.jsonl"
    log = tmp_path / "killed.log"
    with job(config, log) as process:

        def runs() -> bool:
            return process.poll() is None

        wait_for(saved.exists, runs, 200)
        first = workers(TITLE)
        for worker in first:
            worker.kill()
        psutil.wait_procs(first, 20)
        written = lines.stat().st_mtime_ns
        wait_for(lambda: bool(set(workers(TITLE)) - set(first)), runs, 200)
        # What was written after the checkpoint has then been taken back.
        wait_for(lambda: lines.stat().st_mtime_ns != written, runs, 200)
        second = [worker for worker in workers(TITLE) if worker not in first]
        with standing_still(second):
            process.send_signal(number)
            wait_for(lambda: "stopping:" in log.read_text(), runs, 100)
    _, alive = psutil.wait_procs(second, 100)
    assert not alive
    said = log.read_text()[-3000:]
    assert process.returncode == status, said
    assert saved.exists(), said
    assert not (tmp_path / "out" / "checkpoint").exists(), "it had not ended"
    assert len(first) == 1, said
    # Lines that the killed run wrote after its checkpoint must not stand twice.
    resident.train(train, config)
    assert_same_end(tmp_path / "out", trained)


def test_a_signal_ends_the_run_after_its_step_and_saves_it(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path
) -> None:
    """That it then ends the same: with a process of its own above, and in
    tests/unit/train/test_loop.py."""
    config = train_config(
        encoded, base, tmp_path / "out", max_steps=10_000, save_every=10_000, eval_share=0
    )

    def send(runs: Callable[[], bool]) -> None:
        wait_for((tmp_path / "out" / "metrics.jsonl").exists, runs, 200)
        if runs():
            os.kill(os.getpid(), signal.SIGTERM)

    ends = pytest.raises(Stopped, match="stopped by SIGTERM and saved; the same command")
    with meanwhile(send), ends:
        resident.train(train, config)
    index = json.loads((tmp_path / "out" / "run" / "checkpoints.json").read_text())
    assert len(index["checkpoints"]) == 1, "none was due: the signal made it"


@pytest.mark.soak
def test_a_signal_while_no_worker_can_start_ends_the_run(
    encoded: Path, base: Path, tmp_path: Path
) -> None:
    """For a GPU that is not there it would wait for ever."""
    config = train_config(encoded, base, tmp_path / "out", gpu=True)
    log = tmp_path / "waiting.log"
    begun = tmp_path / "out" / "run" / ".validate_storage_marker"
    with job(config, log) as process:
        wait_for(begun.exists, lambda: process.poll() is None, 200)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert "stopped by SIGTERM while no worker was running" in log.read_text()


@pytest.mark.soak
def test_workers_killed_at_random_steps_change_nothing(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    times = 3
    config = train_config(encoded, base, tmp_path / "out", max_failures=times)
    log = tmp_path / "out" / "metrics.jsonl"
    killed: list[int] = []

    def kill(runs: Callable[[], bool]) -> None:
        """A worker each time the log first holds one of so many random steps."""
        for step in sorted(random.Random(0).sample(range(1, 6), times)):

            def reached(step: int = step) -> bool:
                return log.exists() and any(
                    row.get("step", 0) >= step for row in metrics(tmp_path / "out")
                )

            wait_for(reached, runs, 200)
            for process in workers(TITLE):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
                    killed.append(process.pid)
            wait_for(lambda: not reached(), runs, 20)

    with meanwhile(kill):
        train(config)
    assert len(set(killed)) == times
    assert_same_end(tmp_path / "out", trained)


def test_a_stopped_run_goes_on_with_another_number_of_workers(
    resident: Resident, encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    """SIGTERM saves at once; one worker then takes the rows that two had. The job's driver is this
    process."""
    changes = {"num_workers": 2, "accumulation": 1, "cpus_per_worker": 0.5, "save_every": 100}
    config = train_config(encoded, base, tmp_path / "out", **changes)
    log = tmp_path / "stopped.log"
    begun = tmp_path / "out" / "metrics.jsonl"
    addresses: set[str] = set()

    def stop(runs: Callable[[], bool]) -> None:
        wait_for(lambda: len(workers(TITLE)) == 2, runs, 200)
        both = workers(TITLE)
        wait_for(begun.exists, runs, 200)
        # Of the store and the ports through which the two have met, too.
        addresses.update(door.address for door in listening())
        with standing_still(both):
            if runs():
                os.kill(os.getpid(), signal.SIGTERM)
            wait_for(lambda: "stopping:" in log.read_text(), runs, 100)

    with log.open("w") as file, redirect_stdout(file), meanwhile(stop):
        status = main(words_of(config))
    assert status == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert "the same command resumes" in log.read_text()
    assert set() != addresses <= LOOPBACK
    index = json.loads((tmp_path / "out" / "run" / "checkpoints.json").read_text())
    assert len(index["checkpoints"]) == 1, "none was due: the signal made it"
    config = config.model_copy(update={"num_workers": 1, "cpus_per_worker": 1.0})
    resident.train(train, config)
    for one, two in zip(metrics(trained)[1:], metrics(tmp_path / "out")[1:], strict=True):
        assert two["step"] == one["step"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-3)


def test_a_finished_run_has_nothing_left_to_do(
    resident: Resident, encoded: Path, base: Path, trained: Path
) -> None:
    lines, before = (trained / "metrics.jsonl").read_bytes(), weights(trained)
    resident.train(train, train_config(encoded, base, trained))
    assert (trained / "metrics.jsonl").read_bytes() == lines
    after = weights(trained)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_rate_that_diverges_ends_the_run_and_says_so(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path
) -> None:
    config = train_config(
        encoded, base, tmp_path / "out", learning_rate=1e30, warmup_steps=0, save_every=1
    )
    with pytest.raises(ValueError, match=r"the gradient of step \d is nan.*--learning-rate"):
        resident.train(train, config)
    index = json.loads((tmp_path / "out" / "run" / "checkpoints.json").read_text())
    assert index["checkpoints"], "the last checkpoint is kept"


@contextmanager
def full_disk(resident: Resident) -> Iterator[None]:
    """Files of the worker end at a size."""

    def limit(size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    resident.call(partial(limit, 500_000))
    try:
        yield
    finally:
        resident.call(partial(limit, resource.RLIM_INFINITY))


def test_a_full_disk_ends_the_run_and_says_so(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path
) -> None:
    config = train_config(encoded, base, tmp_path / "out", save_every=1, best_metric=None)
    with full_disk(resident), pytest.raises(ValueError, match="File too large while") as caught:
        resident.train(train, config)
    assert "step-00000001: File too large while saving" in str(caught.value)
    assert "Free space, then the same command resumes" in str(caught.value)
    left = {path.name for path in (tmp_path / "out" / "run").iterdir()}
    assert not any(name.startswith(("step-", "sheen-")) for name in left), "nothing half written"
    resident.train(train, config)
    assert len(metrics(tmp_path / "out")) == 1 + 6
