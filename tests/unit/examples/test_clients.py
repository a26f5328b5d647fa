"""The client scripts without their servers: what they need to start, and how they fail.

Against a server: tests/e2e/test_serve.py for the openai library; the clients' README.md says
what was seen with the others, whose packages are no part of the development set.
"""

import json
import shutil
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from helpers.example import EXAMPLES

CLIENTS = EXAMPLES / "clients"
sys.path.append(str(CLIENTS))

import client_run  # noqa: E402
import openai_client  # noqa: E402

SCRIPTS = sorted(CLIENTS.glob("*_client.py"))


def run_bare(script: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """The script in a Python that has no packages installed."""
    command = [sys.executable, "-S", str(script), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_needs_no_package_and_speaking_names_the_missing_one(script: Path) -> None:
    told = run_bare(script, "--help")
    assert told.returncode == 0, told.stderr
    for flag in ("--url", "--api-key", "--text", "--voice", "--output"):
        assert flag in told.stdout
    missing = run_bare(script)
    assert missing.returncode == 1
    assert missing.stderr.startswith("ModuleNotFoundError: ")
    assert missing.stderr.count("\n") == 1
    kind = script.stem.removesuffix("_client")
    requirement = (CLIENTS / f"requirements-{kind}.txt").read_text()
    assert kind in requirement
    assert "==" in requirement
    assert script.name in (CLIENTS / "README.md").read_text()


def test_curl_is_a_script_that_bash_can_read() -> None:
    subprocess.run(["bash", "-n", str(CLIENTS / "curl.sh")], check=True)


PCM, EVENTS = '"response_format": "pcm"', '"stream_format": "sse"'
DELTA = 'data: {"type":"speech.audio.delta","audio":"AAAA"}\n\n'
DONE = 'data: {"type":"speech.audio.done"}\n\n'
STOPPED = 'data: {"type":"error","error":{"message":"stopped"}}\n\n'


class Scripted(BaseHTTPRequestHandler):
    """Speaks, except that a request with `words` in it gets an answer of the test."""

    words, status, answer = "nothing", 200, ""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        status, data = 200, DELTA + DONE if EVENTS in body else "audio"
        if self.words in body:
            status, data = self.status, self.answer
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("words", "status", "answer", "told"),
    [
        ("nothing", 200, "", "5 bytes (with ffplay you would hear them)"),
        ('"mp3"', 429, "too many", "too many"),
        (EVENTS, 429, "too many", "too many"),
        (EVENTS, 200, DELTA, "the events ended without speech.audio.done"),
        (EVENTS, 200, STOPPED, '"message":"stopped"'),
        (PCM, 429, "too many", "too many"),
    ],
)
def test_curl_tells_every_failure_and_ends_with_it(
    tmp_path: Path, words: str, status: int, answer: str, told: str
) -> None:
    for name in ("bash", "cat", "curl", "cut", "grep", "mktemp", "rm", "wc"):  # and no ffplay
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
    handler = type("Handler", (Scripted,), {"words": words, "status": status, "answer": answer})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        done = subprocess.run(
            ["bash", str(CLIENTS / "curl.sh"), f"http://127.0.0.1:{server.server_port}"],
            env={"PATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        server.shutdown()
        thread.join()
    assert told in done.stdout + done.stderr
    assert (done.returncode == 0) is (words == "nothing")
    assert ("bytes (with ffplay" in done.stdout) is (words == "nothing")


class Truncated(BaseHTTPRequestHandler):
    """Answers every request with audio: as events without their end, where events are asked for."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        events = body.get("stream_format") == "sse"
        data = b'data: {"type": "speech.audio.delta", "audio": "AAAA"}\n\n' if events else b"\0\0"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if events else "audio/pcm")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def truncating() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Truncated)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_events_without_their_end_are_no_success(
    truncating: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert openai_client.main(["--url", truncating]) == 1
    assert "speech.audio.delta" in capsys.readouterr().err


def test_a_line_says_how_much_was_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    heard = client_run.Heard("one text")
    with pytest.raises(client_run.NotSpoken, match="one text: no audio"):
        heard.report()
    for _ in range(3):
        heard.add(b"\1\0" * 8_000)
    heard.report()
    heard.report(sample_rate=24_000)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("one text: 48000 bytes, the first after ")
    assert lines[1].startswith("one text: 1.00 s of audio, the first after ")
    heard.save_wav(tmp_path / "heard.wav", 24_000)
    with wave.open(str(tmp_path / "heard.wav")) as saved:
        assert (saved.getframerate(), saved.getnframes()) == (24_000, 24_000)
        assert saved.readframes(24_000) == bytes(heard.data)
