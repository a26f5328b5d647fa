"""What a file says of itself, through every door: every format, by readers that others wrote.

The real backend under uvicorn, without Ray. The formats by themselves:
tests/unit/audio/test_encoders.py; `python -m sheen`: tests/unit/test_cli.py.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response, WebSocket
from websockets.sync.client import connect

from helpers.doors import PATH, WAIT_S, listening
from helpers.example import VOICE
from helpers.in_process import events
from helpers.readers import check_speech
from helpers.served import opened
from sheen.audio.encoders import MEDIA_TYPES
from sheen.serve.access.middleware import Gate, set_gate
from sheen.serve.answers.responses import answer
from sheen.serve.backend import Backend
from sheen.serve.config import ServeArgs
from sheen.serve.errors import install_error_handlers
from sheen.serve.request_log import RequestLogMiddleware, record_of
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.websocket.conversation import converse

DOORS = ("whole", "streamed", "events", "socket")
SPEEDS = (0.25, 1.0, 4.0)
FIELDS = {"model": "sheen", "voice": VOICE, "seed": 7}


@pytest.fixture(scope="module")
def url(checkpoint: Path) -> Iterator[str]:
    args = ServeArgs(auth="none", max_seconds=0.4, slots=1, max_queue=1)
    backend = Backend(args, str(checkpoint), codec_process=False)
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(RequestLogMiddleware)

    @app.post(PATH)
    async def speech(body: SpeechRequest, request: Request) -> Response:
        return await answer(backend, body, record_of(request), WAIT_S)

    @app.websocket(f"{PATH}/stream")
    async def talk(socket: WebSocket) -> None:
        await converse(socket, backend, args)

    set_gate(Gate(None))
    with listening(app) as url:
        yield url
    backend.close()


def through(url: str, door: str, **fields: Any) -> bytes:
    """The file that comes out of a door."""
    if door == "socket":
        return from_socket(url, **fields)
    if door == "events":
        fields["stream_format"] = "sse"
    with opened(url, input="Yes.", **FIELDS | fields, stream=door == "streamed") as response:
        assert response.status == 200
        body = response.read()
    if door != "events":
        return body
    deltas = [event for event in events(body) if event["type"] == "speech.audio.delta"]
    return b"".join(base64.b64decode(delta["audio"]) for delta in deltas)


def from_socket(url: str, **fields: Any) -> bytes:
    address = f"{url.replace('http', 'ws', 1)}{PATH}/stream"
    with connect(address, open_timeout=WAIT_S) as socket:
        for message in ({"type": "start", **FIELDS, **fields}, {"type": "text", "text": "Yes."}):
            socket.send(json.dumps(message))
        socket.send(json.dumps({"type": "end"}))
        data = b""
        while isinstance(item := socket.recv(WAIT_S), bytes):
            data += item
    assert json.loads(item)["type"] == "speech.audio.done", item
    return data


# Events and a socket's frames carry the bytes of a stream.
@pytest.mark.parametrize(
    "door", [*DOORS[:2], *(pytest.param(door, marks=pytest.mark.soak) for door in DOORS[2:])]
)
def test_readers_of_all_kinds_find_what_was_spoken(url: str, door: str, tmp_path: Path) -> None:
    count = len(through(url, door, response_format="pcm")) // 2
    assert count > 0
    for number, audio_format in enumerate(MEDIA_TYPES):
        speed = SPEEDS[(number + DOORS.index(door)) % 3]  # each pair of the three meets
        data = through(url, door, response_format=audio_format, speed=speed)
        check_speech(audio_format, data, round(count / speed), door == "whole", tmp_path)
