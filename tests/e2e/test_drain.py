"""A server's end: a signal or a drain lets speech finish, and nothing runs after it."""

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from helpers.example import CHECKPOINT, ROOT, VOICE
from sheen.runs.cluster import NORMAL_PRIORITY
from sheen.serve import run

READY_S = 300
END_S = 180
TEXT = "They measured the room twice before they ordered the carpet."
BODY = {"model": "sheen", "voice": VOICE, "input": TEXT, "response_format": "pcm", "seed": 7}
NAME = "orderly"
RUN = [sys.executable, "-m", "sheen.serve.run"]
SERVE_RUN = [str(Path(sys.executable).parent / "serve"), "run"]


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Of a Ray cluster of its own, with a token of its own."""
    token = tmp_path_factory.mktemp("secret") / "token"
    token.write_text(secrets.token_hex(32), "utf-8")
    token.chmod(0o600)
    others = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Short: paths of sockets have at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as folder:
        yield others | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_TMPDIR": folder,
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(ROOT),
        }


@contextmanager
def server(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[tuple[psutil.Popen, int]]:
    """The shipped config, one replica, on a port of its own: its process, once it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["name"] = NAME
    application["args"]["model"] = str(CHECKPOINT)
    application["deployments"] = [{"name": "SpeechService", "num_replicas": 1}]
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = psutil.Popen(
            [*command, str(path)],
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    family = [process]
    try:
        deadline = time.monotonic() + READY_S
        while not ready(port):
            assert process.poll() is None, log.read_text("utf-8")
            assert time.monotonic() < deadline, log.read_text("utf-8")
            time.sleep(0.5)
        family += process.children(recursive=True)
        yield process, port
    finally:
        with suppress(psutil.NoSuchProcess):
            family += process.children(recursive=True)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()


def ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def speech(port: int) -> Iterator[http.client.HTTPResponse]:
    """An answer that has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=END_S)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/audio/speech", json.dumps(BODY), headers)
        response = connection.getresponse()
        assert response.status == 200
        yield response
    finally:
        connection.close()


def drained(environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sheen.serve.drain", *flags]
    return subprocess.run(
        words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=END_S, check=False
    )


def ended(process: psutil.Popen, family: list[psutil.Process]) -> int:
    """The exit status; nothing that the process started runs on."""
    status = process.wait(END_S)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
    return int(status)


def speech_is_whole(
    number: int, command: list[str], folder: Path, environment: dict[str, str]
) -> None:
    """Though the signal comes while it is made."""
    with server(command, folder, environment) as (process, port):
        with speech(port) as response:
            whole = response.read()
        family = process.children(recursive=True)
        if "--address" not in command:
            started = {one.pid for one in family}
            priorities = {
                one.info["nice"]
                for one in psutil.process_iter(["cmdline", "nice"])
                if one.pid in started and "replica" in (one.info["cmdline"] or [""])[0].lower()
            }
            assert priorities == {process.nice()}
        with speech(port) as response:
            begun = response.read(2)
            if number == signal.SIGINT:  # of a terminal: all of its processes get it
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            assert len(begun + response.read()) == len(whole)  # IncompleteRead where it is cut
        assert ended(process, family) == 0, (folder / "serve.log").read_text("utf-8")


def test_after_sigterm_speech_is_whole_and_the_process_ends(
    ray_cluster: None, tmp_path: Path
) -> None:
    """On a cluster that was there before, and stays."""
    address = ray.get_runtime_context().gcs_address
    speech_is_whole(signal.SIGTERM, [*RUN, "--address", address], tmp_path, dict(os.environ))


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_a_signal_a_cluster_of_its_own_ends_with_the_server(
    number: int, tmp_path: Path, environment: dict[str, str]
) -> None:
    others = {name: value for name, value in environment.items() if name != NORMAL_PRIORITY[0]}
    speech_is_whole(number, RUN, tmp_path, others)


@pytest.mark.soak
def test_a_drain_finds_its_cluster_and_ends_serve_run(
    ray_cluster: None, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Beside it runs a cluster of the tests', which has no such application."""
    with server(SERVE_RUN, tmp_path, environment) as (process, port):
        other = drained(environment, "--app", "another")
        assert other.returncode == 2
        assert "has no application 'another' (it has: 'orderly')" in other.stderr
        assert "Traceback" not in other.stderr

        family = process.children(recursive=True)
        with speech(port) as response:
            begun = response.read(2)
            draining = subprocess.Popen(
                [sys.executable, "-m", "sheen.serve.drain", "--app", NAME],
                env=environment,
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
            rest = response.read()
        _, error = draining.communicate(timeout=END_S)
        assert draining.returncode == 0, error
        assert ended(process, family) == 0, (tmp_path / "serve.log").read_text("utf-8")
        assert len(begun + rest) > 2 * 2 * 24_000  # seconds, at 24 kHz

    again = drained(environment, "--app", NAME)
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1].startswith("drain: error: ")  # after Ray's own lines
    assert "Traceback" not in again.stderr


def test_a_drain_of_an_address_without_a_server_says_so() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    found = drained(dict(os.environ), "--address", address)
    assert found.returncode == 2
    assert found.stderr.startswith(f"drain: error: the Ray cluster at {address} cannot be joined")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("content", [None, "", "- a", "applications: 1", "applications: [{}]", "{"])
def test_a_server_refuses_what_is_no_config_before_ray_starts(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.yaml"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(SystemExit, match="2"):
        run.main([str(path)])
    assert f"{path}: not a config of Ray Serve" in capsys.readouterr().err
