"""One job at a time works on an output; a second is refused by name, wherever the output lies."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from helpers.example import ROOT, load_script
from helpers.jobs import DOORS
from sheen.runs import lock
from sheen.runs.lock import LOCK_FILE, is_unused, output_lock
from sheen.storage import files, uris

HOLD = """
import sys
from sheen.runs.lock import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(output: Path) -> Iterator[subprocess.Popen[str]]:
    """By another process, until it is killed or its input ends."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(output)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_owner_is_refused_by_name_and_the_next_is_not(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with held(output) as process:
        name = f"process {process.pid} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=f"--output {output}: another job .{name}. is at work"):
            output_lock(str(output)).__enter__()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with output_lock(str(output)):
            assert is_unused(str(output))
        assert list(output.iterdir()) == []
    with output_lock(str(tmp_path / "new" / "out")):
        pass
    assert not (tmp_path / "new" / "out").exists(), "nothing was written: nothing is left"


def test_what_is_written_stays_and_the_lock_goes(tmp_path: Path) -> None:
    with output_lock(str(tmp_path)):
        (tmp_path / "rows").write_text("x")
        assert not is_unused(str(tmp_path))
        with pytest.raises(ValueError, match="is at work"):
            output_lock(str(tmp_path)).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An object store's folder, where locks are renewed: quickly here."""
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "WATCH_S", 3.0)
    monkeypatch.setattr(lock, "SETTLE_S", 0.0)
    fsspec.filesystem("memory").store.clear()
    return f"memory://owned/{request.node.name[:20]}"


def test_an_object_stores_owner_is_seen_by_what_it_renews(store: str) -> None:
    with output_lock(store), pytest.raises(ValueError, match="is at work"):
        output_lock(store).__enter__()
    assert not files.exists(uris.join(store, LOCK_FILE))
    with output_lock(store):
        pass


@pytest.mark.parametrize("host", ["another", socket.gethostname()])
def test_a_lock_that_nobody_renews_is_taken_over(
    store: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another machine after it was watched; of this one at once, when its process is gone."""
    monkeypatch.setattr(lock, "WATCH_S", 0.5 if host == "another" else 1e6)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left = {"host": host, "pid": gone.pid, "token": "x"}
    files.write_bytes(uris.join(store, LOCK_FILE), json.dumps(left).encode())
    with output_lock(store):
        owner = json.loads(files.read_bytes(uris.join(store, LOCK_FILE)))
        assert owner["pid"] == os.getpid()


@pytest.mark.parametrize("job", DOORS)
def test_every_job_refuses_an_output_that_another_is_at(
    job: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'
    (tmp_path / "codes.jsonl").write_text(line * 3)
    words = DOORS[job] | ({"model": base} if job == "train" else {}) | {"output": tmp_path / "out"}
    main = load_script(ROOT / "jobs" / f"{job}.py").main
    with held(tmp_path / "out") as process:
        capsys.readouterr()
        assert main([str(w) for pair in words.items() for w in (f"--{pair[0]}", pair[1])]) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert f"another job (process {process.pid}" in said[-1]
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]
