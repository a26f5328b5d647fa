"""One job at a time works on an output, wherever it lies; and what is taken for the same run.

A second job is refused by name. A run is known by content, never by names.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest

from helpers.example import ROOT, load_script
from helpers.jobs import JOBS, arguments
from sheen.runs import output as runs_output
from sheen.runs.output import (
    LOCK_FILE,
    RECORDINGS,
    SAMPLED,
    check_fingerprint,
    folder_digest,
    forget_idle_run,
    is_unused,
    output_lock,
    sample_digests,
)
from sheen.storage import files, uris

HOLD = """
import sys
from sheen.runs.output import output_lock
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


def test_a_run_leaves_its_files_and_no_lock(tmp_path: Path) -> None:
    with output_lock(str(tmp_path)):
        (tmp_path / "rows").write_text("x")
        assert not is_unused(str(tmp_path))
        with pytest.raises(ValueError, match="is at work"):
            output_lock(str(tmp_path)).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """An object store's folder, where locks are renewed: quickly here."""
    monkeypatch.setattr(runs_output, "BEAT_S", 0.1)
    monkeypatch.setattr(runs_output, "WATCH_S", 3.0)
    monkeypatch.setattr(runs_output, "SETTLE_S", 0.0)
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
    monkeypatch.setattr(runs_output, "WATCH_S", 0.5 if host == "another" else 1e6)
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    left = {"host": host, "pid": gone.pid, "token": "x"}
    files.write_bytes(uris.join(store, LOCK_FILE), json.dumps(left).encode())
    with output_lock(store):
        owner = json.loads(files.read_bytes(uris.join(store, LOCK_FILE)))
        assert owner["pid"] == os.getpid()


@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_an_output_that_another_is_at(
    job: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    line = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'
    (tmp_path / "codes.jsonl").write_text(line * 3)
    main = load_script(ROOT / "jobs" / f"{job}.py").main
    with held(tmp_path / "out") as process:
        capsys.readouterr()
        assert main(arguments(job, base, tmp_path / "out")) == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert f"another job (process {process.pid}" in said[-1]
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_FILE]


def test_a_run_that_did_nothing_is_no_hindrance(tmp_path: Path) -> None:
    """What kept it from its work may be what is changed now."""
    where = tmp_path / "out" / "run.json"
    forget_idle_run(f"{tmp_path}/out", "run.json")
    assert check_fingerprint(str(where), {"codec": "torn"}) == ""
    with output_lock(f"{tmp_path}/out"):
        forget_idle_run(f"{tmp_path}/out", "run.json")
        assert check_fingerprint(str(where), {"codec": "whole"}) == ""
    (where.parent / "blocks").mkdir()
    forget_idle_run(f"{tmp_path}/out", "run.json")
    assert check_fingerprint(str(where), {"codec": "other"}) == "codec was 'whole', now 'other'"


FIELDS: dict[str, Any] = {"seed": 0, "voices": ["a", "b"], "judge": None, "normal": {"by": "x"}}


def test_the_first_runs_fingerprint_is_recorded_and_the_same_resumes(tmp_path: Path) -> None:
    where = str(tmp_path / "out" / "run.json")
    assert check_fingerprint(where, FIELDS) == ""
    before = Path(where).read_bytes()
    assert check_fingerprint(where, FIELDS) == ""
    assert Path(where).read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"judge": "p", "voices": ["a"]}, "voices was ['a', 'b'], now ['a']; judge was None"),
        ({"new": 2}, "new was None, now 2"),
        ({"normal": {"by": "y"}}, "normal was {'by': 'x'}, now {'by': 'y'}"),
        ({"normal": None}, "normal was {'by': 'x'}, now None"),
    ],
)
def test_every_field_that_differs_from_the_fingerprint_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    where = str(tmp_path / "run.json")
    check_fingerprint(where, FIELDS)
    before = Path(where).read_bytes()
    assert message in check_fingerprint(where, FIELDS | changes, {"data"})
    assert Path(where).read_bytes() == before


def test_what_an_older_record_does_not_say_is_not_compared(tmp_path: Path) -> None:
    where = str(tmp_path / "run.json")
    check_fingerprint(where, FIELDS)
    assert check_fingerprint(where, FIELDS | {"data": "hash"}, {"data"}) == ""


@pytest.fixture
def clips(tmp_path: Path) -> list[str | None]:
    """More than are sampled, each with a content of its own."""
    for place in range(20):
        (tmp_path / str(place)).write_bytes(bytes([place]) * 99)
    return [str(tmp_path / str(place)) for place in range(20)]


def test_recordings_are_compared_where_both_are_known(
    clips: list[str | None], tmp_path: Path
) -> None:
    """Some of them missing, moved, or repaired are the same corpus; most of them others are not."""
    where = str(tmp_path / "run.json")
    assert len(sample_digests(clips)) == SAMPLED
    check_fingerprint(where, {RECORDINGS: sample_digests([None, *clips[1:]])})
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for clip in clips:
        shutil.copy(str(clip), moved)
    again = [str(moved / Path(str(clip)).name) for clip in clips]
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == ""
    for place in range(8):  # 0, 2, 5 and 7 are compared, of which nobody knew 0
        (moved / str(place)).write_bytes(b"another")
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == ""
    for place in range(8, 11):
        (moved / str(place)).write_bytes(b"another")
    assert check_fingerprint(where, {RECORDINGS: sample_digests(again)}) == (
        "4 of 7 recordings that were compared have another content"
    )


@pytest.mark.parametrize("count", [0, 1, 3, SAMPLED, 1000])
def test_few_recordings_are_all_sampled(count: int) -> None:
    places = [int(place) for place in sample_digests([None] * count)]
    assert len(places) == min(count, SAMPLED)
    assert all(0 <= place < count for place in places)


def test_a_recording_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    """Not even a pipe that nobody writes to, whose reader would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    places = [str(tmp_path / name) for name in ("absent", "pipe", ".", "pointer")]
    assert set(sample_digests(places).values()) == {None}


def test_a_folder_is_its_files_wherever_it_lies(tmp_path: Path) -> None:
    first, second = tmp_path / "a" / "model", tmp_path / "b" / "other"
    first.mkdir(parents=True)
    (first / "config.json").write_text("{}")
    (first / "x.safetensors").write_bytes(b"w")
    (first / "codec").mkdir()
    shutil.copytree(first, second)
    (second / "notes.txt").write_text("not of the model")
    kinds = (".json", ".safetensors")
    assert folder_digest(str(first), kinds) == folder_digest(str(second), kinds)
    (second / "x.safetensors").write_bytes(b"v")
    assert folder_digest(str(first), kinds) != folder_digest(str(second), kinds)
