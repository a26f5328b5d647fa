"""The speech routes without Ray Serve: real answers, error handlers and log, around a backend."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
from fastapi import FastAPI, Request, Response, WebSocket
from starlette.testclient import TestClient

from sheen.serve.access.middleware import Gate, set_gate
from sheen.serve.answers.batch import answer_batch
from sheen.serve.answers.responses import answer
from sheen.serve.backend import Backend
from sheen.serve.config import BATCH, ClientLimits
from sheen.serve.errors import install_error_handlers
from sheen.serve.request_log import RequestLogMiddleware, record_of
from sheen.serve.schema.requests import BatchRequest, SpeechRequest
from sheen.serve.websocket.conversation import converse

WAIT_S = 600


def speech_app(backend: Backend) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(RequestLogMiddleware)

    @app.post("/v1/audio/speech")
    async def speech(body: SpeechRequest, request: Request) -> Response:
        return await answer(backend, body, record_of(request), WAIT_S)

    @app.post(BATCH)
    async def speech_batch(body: BatchRequest, request: Request) -> Response:
        return await answer_batch(backend, body, request)

    @app.websocket("/v1/audio/speech/stream")
    async def speech_stream(socket: WebSocket) -> None:
        await converse(socket, backend, ClientLimits())

    return app


@contextmanager
def asking(backend: Backend) -> Iterator[TestClient]:
    """A client of `speech_app`, without a key."""
    set_gate(Gate(None))
    with TestClient(speech_app(backend), raise_server_exceptions=False) as client:
        yield client


def openai_client(client: TestClient) -> openai.OpenAI:
    """The official client, unmodified but for its transport."""
    return openai.OpenAI(
        base_url=f"{client.base_url}/v1", api_key="none", max_retries=0, http_client=client
    )


def events(body: bytes) -> list[dict[str, Any]]:
    """Server-sent events, each of one line."""
    blocks = body.decode().split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]
