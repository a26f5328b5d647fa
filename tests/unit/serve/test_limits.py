"""What a client may take up, at every door: the real gate, conversation and voice under uvicorn.

The same table under Ray Serve: tests/e2e/test_serve_load.py.
"""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Response, WebSocket
from hypothesis import given
from hypothesis import strategies as st

from helpers.doors import (
    DOORS,
    FIELDS,
    KEY,
    PATH,
    START,
    WAIT_S,
    Break,
    Outcome,
    anything_but_a_start,
    begin,
    closed,
    line,
    listening,
    no_body_at_all,
    no_start,
    text_of,
    trickling,
    trickling_in_chunks,
)
from sheen.serve import request_log
from sheen.serve.access.keys import digest
from sheen.serve.access.limits import Inbox, Pace
from sheen.serve.access.middleware import Gate, GateMiddleware, set_gate
from sheen.serve.backend import Backend
from sheen.serve.config import ClientLimits, ServeArgs
from sheen.serve.errors import install_error_handlers
from sheen.serve.request_log import RequestLogMiddleware, RequestRecord, listen
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.websocket.conversation import converse

LIMITS = ClientLimits(max_body_bytes=2048, body_timeout_s=2.0, max_messages_per_s=20)
# For doors that nothing but the time closes, however slow the machine is.
BRIEF = LIMITS.model_copy(update={"body_timeout_s": 0.2})
TIMED = (trickling, trickling_in_chunks, no_body_at_all, no_start, anything_but_a_start)


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[Backend]:
    args = ServeArgs(auth="none", max_seconds=1.0, slots=1, max_queue=1)
    backend = Backend(args, str(checkpoint), codec_process=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return FastAPI()


@pytest.fixture(scope="module")
def url(app: FastAPI, backend: Backend) -> Iterator[str]:
    install_error_handlers(app)
    app.add_middleware(GateMiddleware)
    app.add_middleware(RequestLogMiddleware)

    @app.post(PATH)
    async def speech(body: SpeechRequest) -> Response:
        return Response(body.input, headers={"Connection": "close"})

    @app.websocket(f"{PATH}/stream")
    async def stream(socket: WebSocket) -> None:
        await converse(socket, backend, app.state.limits)

    limit(app, LIMITS)
    with listening(app) as url:
        yield url
    set_gate(Gate(None))


def limit(app: FastAPI, limits: ClientLimits) -> None:
    app.state.limits = limits
    set_gate(Gate(lambda: frozenset({digest(KEY)}), limits))


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[RequestRecord]:
    seen: list[RequestRecord] = []
    monkeypatch.setattr(request_log, "_listeners", [])
    listen(seen.append)
    return seen


@pytest.mark.parametrize(("breaks", "expected"), DOORS.items(), ids=[row.__name__ for row in DOORS])
def test_every_door_has_its_limits_and_counts_who_breaks_them(
    app: FastAPI, url: str, records: list[RequestRecord], breaks: Break, expected: Outcome
) -> None:
    limits = BRIEF if breaks in TIMED else LIMITS
    limit(app, limits)
    try:
        assert breaks(url, limits) == expected
    finally:
        limit(app, LIMITS)
    assert expected[1] in {record.code for record in records}


def test_what_fits_to_the_byte_passes(url: str) -> None:
    body = json.dumps({**FIELDS, "input": "one"}).encode().ljust(LIMITS.max_body_bytes)
    connection = begin(url, len(body), body[:7])
    connection.sendall(body[7:])
    with connection:
        connection.settimeout(WAIT_S)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    with line(url, START) as opened:
        opened.send(text_of(LIMITS.max_body_bytes))
        assert isinstance(opened.recv(WAIT_S), bytes)  # it is spoken


@pytest.mark.parametrize("long_ago_s", [0.0, 0.25, 60.0])
def test_a_pace_allows_so_many_at_once_and_then_one_by_one(long_ago_s: float) -> None:
    now = 0.0
    pace = Pace(16, lambda: now)
    now += long_ago_s
    assert all(pace.keeps() for _ in range(16))
    for _ in range(200):
        now += 1 / 16
        assert pace.keeps()
    assert not pace.keeps()


def test_a_binary_message_is_told_what_to_send(url: str) -> None:
    with line(url, START) as opened:
        opened.send(b'{"type": "cancel"}')
        error = json.loads(opened.recv(WAIT_S))["error"]
        assert error["code"] == "binary_message"
        assert "JSON in text messages" in error["message"]
        opened.send('{"type": "cancel"}')  # the line is still open
        assert json.loads(opened.recv(WAIT_S)) == {"type": "speech.audio.cancelled"}


def test_a_key_that_is_withdrawn_closes_the_line_it_opened(
    url: str, request: pytest.FixtureRequest
) -> None:
    with line(url, START) as opened:
        gate = Gate(lambda: frozenset({digest(KEY)}), LIMITS)
        request.addfinalizer(lambda: set_gate(gate))
        set_gate(Gate(lambda: frozenset({digest("another")}), LIMITS))
        opened.send('{"type": "cancel"}')
        assert closed(opened) == (1008, "invalid_api_key")


def test_a_page_brings_its_key_as_a_subprotocol(url: str) -> None:
    """And browsers want one of what they offered in return; it must not be the key."""
    key = f"openai-insecure-api-key.{KEY}"
    options: dict[str, Any] = {"additional_headers": {"Origin": "https://elsewhere.example"}}
    for offered in ([key, "realtime", "openai-beta.realtime-v1"], ["realtime", key]):
        with line(url, START, subprotocols=offered, **options) as opened:
            assert opened.subprotocol == "realtime"
    with line(url, START, subprotocols=[key], **options) as opened:
        assert opened.subprotocol is None


# Halves of surrogate pairs


def joined(parts: list[str]) -> str:
    inbox = Inbox(ClientLimits(max_messages_per_s=1 << 20))
    texts = []
    for part in parts:
        sent = json.dumps({"type": "text", "text": part})  # as JSON.stringify: halves are escaped
        message = inbox.take({"type": "websocket.receive", "text": sent})
        assert message.type == "text"
        texts.append(message.text)
    return "".join(texts)


def sliced(text: str, cuts: list[int]) -> list[str]:
    """As JavaScript slices it: between UTF-16's units."""
    units = text.encode("utf-16-le")
    places = [0, *sorted(2 * min(cut, len(units) // 2) for cut in cuts), len(units)]
    return [
        units[begin:end].decode("utf-16-le", "surrogatepass") for begin, end in pairwise(places)
    ]


@given(st.text(st.sampled_from('a é\\"😀𝄞'), max_size=8), st.lists(st.integers(0, 16), max_size=5))
def test_a_text_is_the_same_wherever_a_client_slices_it(text: str, cuts: list[int]) -> None:
    assert joined(sliced(text, cuts)) == text


@given(st.lists(st.text(st.sampled_from("a\ud83d\ude00😀"), max_size=4), max_size=5))
def test_a_half_without_its_other_half_is_replaced(parts: list[str]) -> None:
    whole = "".join(parts).encode("utf-16-le", "surrogatepass")
    expected = whole.decode("utf-16-le", "replace")
    if "\ud800" <= "".join(parts)[-1:] <= "\udbff":
        expected = expected[:-1]  # its other half may still come
    assert joined(parts) == expected


def test_other_fields_must_be_whole(url: str) -> None:
    with line(url) as opened:
        for broken in (START | {"voice": "\ud83d"}, {"type": "text", "text": ["\ud83d"]}):
            opened.send(json.dumps(broken))
            assert json.loads(opened.recv(WAIT_S))["error"]["code"] == "json_invalid"
