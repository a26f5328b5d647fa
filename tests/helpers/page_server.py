"""A server with the page and, for a voice, a recording that tests hold back or break off.

The page, the gate, the errors and the encoders are the real ones. The model is not: what it says
would come when it likes.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import uvicorn
from fastapi import Request, WebSocket
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from helpers.browser import WAIT_S
from helpers.example import RATE, VOICES, clips_of, read_clip
from sheen.audio.encoders import MEDIA_TYPES, AudioEncoder
from sheen.serve.access.middleware import Gate, GateMiddleware, answered_protocol, set_gate
from sheen.serve.errors import APIError, install_error_handlers
from sheen.serve.schema.answers import AudioModels, ModelId, NamedVoice, Voices
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.web.pages import SpeechAPI, page_response, reference_response

PREFIX = "/some/prefix"
SAMPLES = read_clip(clips_of(VOICES[0])[0])
SECONDS = len(SAMPLES) / RATE
CHUNK = 4001
"""Samples. With the WAV header, cut where two bytes of one sample are parted."""
HELD_AFTER = 5 * CHUNK


class Speaker:
    """Answers requests for speech with the recording. Of the texts "held" and "broken" it sends a
    part, and the rest, or an error, after `release`."""

    def __init__(self) -> None:
        self.asked: list[SpeechRequest] = []
        self.sent = b""
        self.left = threading.Event()
        """A client went away in the middle."""

    def answer(self, body: SpeechRequest) -> Response:
        self.asked.append(body)
        self.sent = b""
        if body.input == "busy":
            raise APIError(429, "all 8 slots are taken", retry_after_s=3)
        return StreamingResponse(
            self.stream(body),
            media_type=MEDIA_TYPES[body.response_format],
            headers={"x-sample-rate": str(RATE)},
        )

    async def stream(self, body: SpeechRequest) -> AsyncIterator[bytes]:
        self.loop, self.go_on = asyncio.get_running_loop(), asyncio.Event()
        encoder = AudioEncoder(body.response_format, RATE)
        try:
            for begin in range(0, len(SAMPLES), CHUNK):
                if begin == HELD_AFTER and body.input in ("held", "broken"):
                    await self.go_on.wait()
                    if body.input == "broken":
                        raise ConnectionError("as the test wants it")
                data = encoder.push(SAMPLES[begin : begin + CHUNK])
                for part in (data[:777], data[777:]):
                    self.sent += part
                    yield part
            rest = encoder.finish()
            self.sent += rest
            yield rest
        except asyncio.CancelledError:
            self.left.set()
            raise
        finally:
            encoder.close()

    def release(self) -> None:
        self.loop.call_soon_threadsafe(self.go_on.set)


async def page() -> HTMLResponse:
    return page_response()


async def reference(request: Request) -> HTMLResponse:
    return reference_response(
        request.app.document(["bf_alice", "heart"], request.scope["root_path"])
    )


async def voices() -> Voices:
    return Voices(voices=[NamedVoice(id=name, name=name) for name in ("bf_alice", "heart")])


async def models() -> AudioModels:
    return AudioModels(models=[ModelId(id="english")])


async def line(socket: WebSocket) -> None:
    await socket.accept(answered_protocol(socket.scope))


@contextlib.contextmanager
def serving(speaker: Speaker) -> Iterator[str]:
    """The page's address, below a prefix and without a slash at its end."""
    set_gate(Gate(None))
    app = SpeechAPI(title="Sheen")
    install_error_handlers(app)
    app.add_middleware(GateMiddleware)
    app.get("/", include_in_schema=False)(page)
    app.get("/docs", include_in_schema=False)(reference)
    app.get("/v1/audio/voices")(voices)
    app.get("/v1/audio/models")(models)
    app.post("/v1/audio/speech")(speaker.answer)
    app.websocket("/v1/audio/speech/stream")(line)

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope | {"root_path": PREFIX}, receive, send)  # as Ray Serve passes it

    server = uvicorn.Server(
        uvicorn.Config(prefixed, log_level="critical", timeout_graceful_shutdown=1)
    )
    # It listens before the server runs: whoever connects early waits, and nobody polls.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{PREFIX}"
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
