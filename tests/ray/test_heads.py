"""A head that has died, or refuses, is an error within half a minute, which says what to do."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from helpers.corpora import own_line
from helpers.example import CODEC, RECORDINGS, ROOT
from sheen.runs.cluster import check_head


@pytest.fixture
def closed() -> str:
    """An address of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray keeps the address of the last `ray start`."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def test_a_head_that_does_not_answer_is_named_with_the_variable_that_leads_there(
    closed: str, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address in (closed, f"ray://{closed}", "nonsense"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ValueError, match=f"the variable RAY_ADDRESS .*{address}"):
            check_head()
    for address, joins in (("auto", True), ("local", False), ("", False)):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert check_head() == joins


def test_a_head_that_does_not_answer_is_named_with_the_file_that_leads_there(
    closed: str, left: Path
) -> None:
    assert not check_head()
    left.write_text(closed)
    with pytest.raises(ValueError, match=f"the file {left} .*{closed}.*delete it"):
        check_head()


def test_a_head_that_listens_is_joined(left: Path) -> None:
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        left.write_text(f"127.0.0.1:{head.getsockname()[1]}")
        assert check_head()


def test_a_job_whose_head_does_not_answer_ends_with_one_line(closed: str, tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "jobs" / "encode.py"), "--input", str(RECORDINGS)]
    words += ["--output", str(tmp_path / "out"), "--codec", str(CODEC)]
    environment = os.environ | {"RAY_ADDRESS": closed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 2
    assert "RAY_ADDRESS" in own_line(done.stderr, "encode")
    assert "Traceback" not in done.stderr


def test_a_head_that_refuses_the_token_is_an_error_that_says_how_to_do_without(
    ray_cluster: None, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    environment = os.environ | {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("RAY_AUTH_TOKEN", None)
    words = [sys.executable, "-c", "from sheen.runs.cluster import connect; connect()"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError"), last
    assert "RAY_AUTH_TOKEN_PATH" in last
    assert "RAY_ADDRESS=local" in last
