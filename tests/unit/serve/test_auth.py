"""The gate: keys, where a WebSocket comes from. And the ledger around it.

What a client may take up: test_limits.py beside this file; where keys come from: test_keys.py.
"""

import gc
import json
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sheen.serve import request_log
from sheen.serve.access.keys import digest
from sheen.serve.access.middleware import Gate, GateMiddleware, set_gate
from sheen.serve.errors import APIError, install_error_handlers
from sheen.serve.request_log import RequestLogMiddleware, RequestRecord, listen, record_of, refused
from sheen.serve.schema.requests import SpeechRequest

KEY, OTHER = "first-key", "second-key"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The real middleware before a few routes."""
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(GateMiddleware)
    app.add_middleware(RequestLogMiddleware)

    @app.post("/v1/echo")
    async def echo(body: dict[str, Any], request: Request) -> dict[str, Any]:
        record_of(request).cleanup.callback(released.append, record_of(request).path)
        return body

    @app.get("/health")
    async def health() -> str:
        return "OK"

    @app.post("/v1/audio/speech")
    async def speech(body: SpeechRequest) -> None:
        pass

    @app.get("/v1/refused")
    async def refused() -> None:
        raise APIError(429, "no", retry_after_s=0)

    @app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("inside")

    @app.get("/v1/cut")
    async def cut(request: Request) -> StreamingResponse:
        record_of(request).cleanup.callback(released.append, "cut")

        async def body() -> AsyncIterator[bytes]:
            yield b"some"
            raise RuntimeError("in the middle")

        return StreamingResponse(body())

    @app.websocket("/v1/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    set_gate(Gate(None))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


released: list[str] = []


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[RequestRecord]:
    seen: list[RequestRecord] = []
    monkeypatch.setattr(request_log, "_listeners", [])
    listen(seen.append)
    released.clear()
    return seen


@pytest.fixture
def keys() -> Iterator[None]:
    set_gate(Gate(lambda: frozenset({digest(KEY), digest(OTHER)})))
    yield
    set_gate(Gate(None))


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(""),
        bearer("first-ke"),
        bearer("first-key2"),
        bearer(digest(KEY)),
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/echo", "/v1", "/v1/", "/v1/nothing"])
def test_without_a_key_nothing_under_v1_answers(
    client: TestClient, keys: None, path: str, headers: dict[str, str]
) -> None:
    # A body that is no JSON: that it is not read shows in the status.
    response = client.post(path, content=b"{", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert KEY not in response.text


@pytest.mark.parametrize(
    "headers", [bearer(KEY), bearer(OTHER), {"Authorization": f"bearer {KEY}"}]
)
def test_any_of_the_keys_is_accepted(
    client: TestClient, keys: None, headers: dict[str, str]
) -> None:
    assert client.post("/v1/echo", json={"a": 1}, headers=headers).json() == {"a": 1}


def test_until_it_is_set_the_gate_is_shut(
    client: TestClient, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: set_gate(Gate(None)))
    set_gate(Gate())
    assert client.post("/v1/echo", json={}, headers=bearer(KEY)).status_code == 401


def test_health_needs_no_key(client: TestClient, keys: None) -> None:
    assert client.get("/health").status_code == 200


FOREIGN = [{"Origin": "http://elsewhere"}, {"Origin": "http://["}]


def talk(client: TestClient, headers: dict[str, str], *subprotocols: str) -> str:
    with client.websocket_connect("/v1/talk", list(subprotocols), headers=dict(headers)) as socket:
        return str(socket.receive_text())


def in_a_subprotocol(key: str) -> str:
    return f"openai-insecure-api-key.{key}"


@pytest.mark.parametrize("origin", [{}, {"Origin": "http://testserver"}, *FOREIGN])
def test_a_websocket_needs_a_key_wherever_it_comes_from(
    client: TestClient, keys: None, records: list[RequestRecord], origin: dict[str, str]
) -> None:
    # A page of another host has a key only if it was given one.
    assert talk(client, bearer(KEY) | origin) == "hello"
    assert talk(client, origin, "realtime", in_a_subprotocol(OTHER)) == "hello"
    wrong = (
        [bearer("x")],
        [{}],
        [{}, "realtime", KEY],
        [{}, "realtime", in_a_subprotocol("x")],
        [{}, in_a_subprotocol("")],
    )
    for headers, *subprotocols in wrong:
        records.clear()
        with pytest.raises(WebSocketDisconnect) as closed:
            talk(client, headers | origin, *subprotocols)
        assert closed.value.code == 1008
        assert [(record.status, record.code) for record in records] == [(401, "invalid_api_key")]


def test_no_key_is_taken_from_a_query(client: TestClient, keys: None) -> None:
    for query in (f"api_key={KEY}", f"authorization=Bearer%20{KEY}", f"key={KEY}"):
        assert client.post(f"/v1/echo?{query}", json={}).status_code == 401


def test_without_keys_no_foreign_page_opens_a_websocket(
    client: TestClient, records: list[RequestRecord]
) -> None:
    assert talk(client, {"Origin": "http://testserver"}) == "hello"
    for origin in FOREIGN:
        records.clear()
        with pytest.raises(WebSocketDisconnect) as closed:
            talk(client, origin)
        assert closed.value.code == 1008
        assert [(record.status, record.code) for record in records] == [(403, "foreign_origin")]


def test_keys_that_cannot_be_known_open_nothing_and_nobody_is_told_they_are_wrong(
    client: TestClient, records: list[RequestRecord], request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: set_gate(Gate(None)))
    set_gate(Gate(lambda: None))
    response = client.post("/v1/echo", json={}, headers=bearer(KEY))
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert response.json()["error"]["code"] == records[0].code == "keys_unreadable"
    with pytest.raises(WebSocketDisconnect):
        talk(client, bearer(KEY))
    assert client.get("/health").status_code == 200


# The ledger


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/refused", 429),
        ("GET", "/v1/broken", 500),
        ("DELETE", "/health", 405),
    ],
)
def test_every_answer_is_entered_once_with_its_status(
    client: TestClient, records: list[RequestRecord], method: str, path: str, status: int
) -> None:
    client.request(method, path, headers={"x-request-id": "mine"})
    [record] = records
    assert (record.path, record.status, record.request_id) == (path, status, "mine")


SPEECH = {"model": "sheen", "voice": "heart", "input": "a secret text"}


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "param"),
    [
        ("POST", "/v1/audio/speech", SPEECH | {"speed": 9}, "less_than_equal", "speed"),
        ("POST", "/v1/audio/speech", SPEECH | {"stream": "true"}, "bool_type", "stream"),
        ("POST", "/v1/audio/speech", SPEECH | {"voice": 7}, "string_type", "voice"),
        ("POST", "/v1/audio/speech", {"model": "sheen"}, "missing", "input"),
        ("POST", "/v1/audio/speech", None, "unsupported_media_type", None),
        ("GET", "/v1/nothing", None, "not_found", None),
        ("DELETE", "/health", None, "method_not_allowed", None),
        ("GET", "/v1/refused", None, "too_many_requests", None),
        ("GET", "/v1/broken", None, "internal_server_error", None),
    ],
)
def test_the_log_has_code_and_field_of_every_refusal(
    client: TestClient,
    records: list[RequestRecord],
    method: str,
    path: str,
    body: dict[str, Any] | None,
    code: str,
    param: str | None,
) -> None:
    client.request(method, path, json=body)
    [fields] = [record.fields() for record in records]
    assert (fields["code"], fields["param"]) == (code, param)
    assert "secret" not in json.dumps(fields)


def test_a_refusal_at_the_gate_is_entered_too(
    client: TestClient, keys: None, records: list[RequestRecord]
) -> None:
    client.post("/v1/echo")
    assert [(record.status, record.code) for record in records] == [(401, "invalid_api_key")]


def test_what_a_request_holds_is_released_however_it_ends(
    client: TestClient, records: list[RequestRecord]
) -> None:
    client.post("/v1/echo", json={})
    with pytest.raises(RuntimeError, match="middle"), TestClient(client.app) as strict:
        strict.get("/v1/cut")
    assert released == ["/v1/echo", "cut"]
    assert [record.status for record in records] == [200, 200]


def test_what_is_logged_of_speech_holds_neither_text_nor_key(
    client: TestClient, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(request_log, "_listeners", [])
    listen(lambda record: seen.append(record.fields()))
    client.post("/v1/echo", json={"input": "a secret text"}, headers=bearer(KEY))
    [fields] = seen
    assert (fields["path"], fields["status"]) == ("/v1/echo", 200)
    logged = json.dumps(fields)
    assert "secret" not in logged
    assert KEY not in logged


def test_the_pace_is_that_of_the_audio_after_the_first_chunk() -> None:
    record = RequestRecord(path="/v1/audio/speech", request_id="id")
    record.sent(0.5)
    assert record.realtime_factor is None
    record.sent(0.5)
    assert record.realtime_factor is not None
    assert 0 <= record.realtime_factor < 1
    assert record.fields()["audio_s"] == 1.0


def test_what_a_client_sent_goes_with_its_refusal() -> None:
    """At once: 15 MB that wait for the garbage collector are 15 MB more for each who sends them."""

    class Sent:
        pass

    def read(scope: dict[str, Any]) -> None:
        sent = Sent()
        kept.append(weakref.ref(sent))
        try:
            raise ValueError("of the library that reads it")
        except ValueError as error:
            raise APIError(413, "too large") from error

    kept: list[weakref.ref[Sent]] = []
    gc.disable()
    try:
        scope: dict[str, Any] = {"type": "websocket", "path": "/", "headers": []}
        try:
            read(scope)
        except APIError as error:
            refused(scope, error)
        assert scope
        del scope
        assert [ref() for ref in kept] == [None]
    finally:
        gc.enable()
