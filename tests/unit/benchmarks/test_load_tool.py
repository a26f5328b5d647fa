"""The load tool against a server that plays scripted answers: what it counts, what it calls late.

The texts of the tool are the names of the answers.
"""

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from helpers.example import RATE, ROOT, load_script

sys.path.append(str(ROOT / "benchmarks"))
from serve_client import Outcome
from serve_loops import NEAR, highest_rate

TOOL = ROOT / "benchmarks" / "serve.py"
CROWD = ROOT / "benchmarks" / "serve_crowd.py"
KEY = "not-to-be-written"
SILENCE_S = 0.5
TONE = (8000 * np.sin(np.arange(RATE // 2) * 0.2 + 1)).astype("<i2")  # half a second
SILENCE = np.zeros(round(SILENCE_S * RATE), "<i2")
AT_ONCE = 3

app = FastAPI()
barrier = asyncio.Barrier(AT_ONCE)
"""Answers to `together` begin when so many have been asked for."""


def event(kind: str, **fields: Any) -> bytes:
    return b"data: " + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


async def parts_of(name: str) -> AsyncIterator[bytes]:
    if name == "together":
        await barrier.wait()
    if name == "quiet first":
        yield SILENCE.tobytes()
    # Cut in the middle of a sample.
    yield TONE.tobytes()[:1001]
    yield TONE.tobytes()[1001:]
    if name == "cut":
        raise RuntimeError("the connection is cut here, as the test wants")


async def events_of(name: str) -> AsyncIterator[bytes]:
    async for part in parts_of(name):
        whole = event("speech.audio.delta", audio=base64.b64encode(part).decode())
        yield whole[:40]
        yield whole[40:]
    if name == "failing":
        yield event("speech.audio.error", error={"message": "the engine has stopped"})
    elif name != "without an end":
        yield event("speech.audio.done", usage={})


@app.get("/v1/models")
async def models() -> dict[str, Any]:
    return {"data": [{"id": "scripted"}]}


@app.get("/v1/audio/voices")
async def voices() -> dict[str, Any]:
    return {"voices": [{"id": "first", "name": "first"}, {"id": "second", "name": "second"}]}


@app.post("/v1/audio/speech")
async def speech(request: Request) -> Response:
    body = await request.json()
    assert body["voice"] == "first"
    assert body["model"] == "scripted"
    name = body["input"]
    if request.headers.get("authorization") != f"Bearer {KEY}":
        return JSONResponse({"error": {"message": "no key"}}, 401)
    if name == "refused":
        return JSONResponse({"error": {"message": "no place"}}, 429, {"Retry-After": "1"})
    if name == "a page":
        return Response("<html>", media_type="text/html")
    if name == "nothing":
        return Response(b"", media_type="audio/pcm")
    if body.get("stream_format") == "sse":
        return StreamingResponse(events_of(name), media_type="text/event-stream")
    rate = {"x-sample-rate": str(RATE)}
    return StreamingResponse(parts_of(name), media_type="audio/pcm", headers=rate)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # who comes before the server is up waits in line
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def figures(url: str, folder: Path, texts: list[str], *flags: str) -> dict[str, Any]:
    """What the tool writes after drawing from `texts`."""
    (folder / "texts.txt").write_text("\n".join(texts), "utf-8")
    report = folder / "report.json"
    paths = ["--texts", str(folder / "texts.txt"), "--json", str(report)]
    always = ["--url", url, "--warm-up", "0", "--api-key", KEY, *paths]
    assert load_script(TOOL).main([*always, *flags]) == 0
    assert KEY not in report.read_text("utf-8")
    found: dict[str, Any] = json.loads(report.read_text("utf-8"))
    return found


def row(url: str, folder: Path, text: str, *flags: str) -> dict[str, Any]:
    """Of three requests for one text, as fast as they can be sent."""
    found = figures(url, folder, [text], "--rate", "1000", "--requests", "3", *flags)
    (only,) = found["rows"]
    assert only["requests"] == 3
    assert isinstance(only, dict)
    return only


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_silence_before_speech_is_waiting(url: str, tmp_path: Path, stream_format: str) -> None:
    plain = row(url, tmp_path, "plain", "--stream-format", stream_format)
    quiet = row(url, tmp_path, "quiet first", "--stream-format", stream_format)
    assert plain["ok"] == quiet["ok"] == 3
    assert plain["audio_s"] == pytest.approx(3 * len(TONE) / RATE)
    assert quiet["audio_s"] == pytest.approx(3 * (SILENCE_S + len(TONE) / RATE))
    # The tone is audible from its first sample on.
    assert plain["ttfa_s"] == pytest.approx(plain["ttfb_s"])
    for name in ("p50", "p95"):
        assert quiet["ttfa_s"][name] >= quiet["ttfb_s"][name] + SILENCE_S - 1e-6


def test_refused_requests_are_counted_apart_from_errors(url: str, tmp_path: Path) -> None:
    found = row(url, tmp_path, "refused")
    assert (found["ok"], found["refused"], found["errors"]) == (0, 3, {})
    assert found["ttfa_s"] == {"p50": None, "p95": None}


@pytest.mark.parametrize(
    ("text", "stream_format", "kind", "message"),
    [
        ("cut", "audio", "cut off", ""),
        ("cut", "sse", "cut off", ""),
        ("without an end", "sse", "cut off", "speech.audio.done"),
        ("failing", "sse", "error event", "the engine has stopped"),
        ("a page", "audio", "no audio", "text/html"),
        ("nothing", "audio", "no audio", "no bytes"),
    ],
)
def test_a_failed_stream_is_an_error_of_its_kind(
    url: str, tmp_path: Path, text: str, stream_format: str, kind: str, message: str
) -> None:
    found = row(url, tmp_path, text, "--stream-format", stream_format)
    assert (found["ok"], found["refused"], found["errors"]) == (0, 0, {kind: 3})
    assert message in found["messages"][kind]
    assert found["audio_s"] == 0


def test_statuses_and_missing_servers_are_errors(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = row(url, tmp_path, "plain", "--api-key", "another")
    assert found["errors"] == {"HTTP 401": 3}
    assert "| 3 HTTP 401 |" in capsys.readouterr().out
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert load_script(TOOL).main(["--url", nobody]) == 2
        assert capsys.readouterr().err.startswith("benchmarks/serve.py: error: http")
        named = ["--model", "scripted", "--voice", "first"]
        assert row(nobody, tmp_path, "plain", *named)["errors"] == {"no connection": 3}


def test_so_many_listeners_listen_at_once(url: str, tmp_path: Path) -> None:
    """With one fewer the server would answer none."""
    flags = ["--concurrency", str(AT_ONCE), "--requests", str(2 * AT_ONCE)]
    (found,) = figures(url, tmp_path, ["together"], *flags)["rows"]
    assert found["ok"] == 2 * AT_ONCE
    assert found["load"] == f"{AT_ONCE} at once"


def test_a_search_says_what_holds(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a second of silence cannot be heard within 0.4 s at any rate."""
    bounds = ["--find-rate", "--requests", "2", "--duration", "0.01", "--max-ttfa", "0.4"]
    found = figures(url, tmp_path, ["quiet first"], *bounds)
    assert found["rate_held"] is None
    assert len(found["rows"]) == 1
    assert "Held: no rate" in capsys.readouterr().out


@pytest.mark.parametrize("limit", [0.3, 1.0, 5.3, 40.0])
def test_the_search_ends_just_below_the_limit(limit: float) -> None:
    async def holds(rate: float) -> bool:
        return rate <= limit

    found = asyncio.run(highest_rate(holds, 1.0))
    assert found is not None
    assert limit / NEAR <= found <= limit
    assert asyncio.run(highest_rate(_never, 1.0)) is None


async def _never(rate: float) -> bool:
    return False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "0"], "above 0"),
        (["--find-rate", "--concurrency", "4"], "leave --concurrency out"),
        (["--texts", "none.txt"], "none.txt"),
        (["--url", "localhost:8000"], "expected http"),
        (["--json", "none/report.json"], "no such folder"),
        (["--max-underruns", "2"], "share from 0 to 1"),
    ],
)
def test_a_wrong_flag_of_the_load_tool_is_one_line(
    flags: list[str], message: str, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load_script(TOOL)
    try:
        status = tool.main(["--url", url, *flags])
    except SystemExit as leaving:
        status = leaving.code
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks/serve.py: error: ")
    assert message in line


def test_the_load_tool_runs_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--rate", "fast"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def crowd(url: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Two who ask for a text, alone and beside three more."""
    (folder / "texts.txt").write_text(text, "utf-8")
    tool = load_script(CROWD)
    monkeypatch.setattr(tool, "TEXTS", folder / "texts.txt")
    few = ["--first", "2", "--crowd", "3", "--rounds", "1", "--come-back"]
    status = tool.main(["--url", f"{url}/v1/", "--api-key", KEY, *few])
    assert isinstance(status, int)
    return status


def test_a_crowd_is_told_apart_by_what_became_of_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crowd(url, "plain", tmp_path, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "| alone | 2 of 2 |" in said
    assert "The crowd, 3 requests: 3 spoken, 0 refused with 429, 0 failed." in said
    assert crowd(url, "cut", tmp_path, monkeypatch) == 1
    said = capsys.readouterr().out
    assert "| with 3 more | 0 of 2 | – |" in said
    assert "3 requests: 0 spoken, 0 refused with 429, 3 failed (3 cut off)." in said


def test_who_comes_back_and_is_refused_again_has_found_no_place(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crowd(url, "refused", tmp_path, monkeypatch) == 1
    *_, came, back = capsys.readouterr().out.splitlines()
    assert came.startswith("The crowd, 3 requests: 0 spoken, 3 refused with 429 after ")
    assert "come back, 3 requests: 0 spoken, 3 refused" in back


def test_a_refusal_is_no_pace() -> None:
    """One heard a second of audio in two, one was refused at once."""
    heard = Outcome(asked=10.0, ended=12.0)
    heard.listener.came(11.0, np.full(heard.listener.rate, 0.5, np.float32))
    refused = Outcome(asked=10.0, ended=10.01, refused=True)
    told = load_script(CROWD).row("alone", [refused, heard])
    assert told == "| alone | 1 of 2 | 2.00 | 2.00 | 2.00 | 0 | 0.000 |"


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert load_script(CROWD).main(["--url", nobody]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("benchmarks/serve_crowd.py: error: http")
