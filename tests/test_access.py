"""The gate: keys, limits, where a WebSocket comes from. And the ledger around it."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sheen.serve import access, accounting
from sheen.serve.access import Gate, GateMiddleware, digest, read_keys, set_gate
from sheen.serve.accounting import AccountingMiddleware, Entry, entry_of, listen
from sheen.serve.errors import APIError, install_error_handlers

JSON = {"Content-Type": "application/json"}
KEY, OTHER = "first-key", "second-key"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    """The real middleware before a few routes."""
    app = FastAPI()
    install_error_handlers(app)
    app.add_middleware(GateMiddleware)
    app.add_middleware(AccountingMiddleware)

    @app.post("/v1/echo")
    async def echo(body: dict[str, Any], request: Request) -> dict[str, Any]:
        entry_of(request).held.callback(released.append, entry_of(request).path)
        return body

    @app.get("/health")
    async def health() -> str:
        return "OK"

    @app.get("/v1/refused")
    async def refused() -> None:
        raise APIError(429, "no", retry_after_s=0)

    @app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("inside")

    @app.get("/v1/cut")
    async def cut(request: Request) -> StreamingResponse:
        entry_of(request).held.callback(released.append, "cut")

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
def entries(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    seen: list[Entry] = []
    monkeypatch.setattr(accounting, "_listeners", [])
    listen(seen.append)
    released.clear()
    return seen


@pytest.fixture
def keys() -> Iterator[None]:
    set_gate(Gate(frozenset({digest(KEY), digest(OTHER)})))
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
def test_any_of_the_keys_opens(client: TestClient, keys: None, headers: dict[str, str]) -> None:
    assert client.post("/v1/echo", json={"a": 1}, headers=headers).json() == {"a": 1}


def test_until_it_is_set_the_gate_is_shut(
    client: TestClient, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: set_gate(Gate(None)))
    set_gate(Gate())
    assert client.post("/v1/echo", json={}, headers=bearer(KEY)).status_code == 401


def test_health_needs_no_key(client: TestClient, keys: None) -> None:
    assert client.get("/health").status_code == 200


def test_a_websocket_needs_a_key_and_no_foreign_page(client: TestClient, keys: None) -> None:
    def talk(headers: dict[str, str]) -> str:
        with client.websocket_connect("/v1/talk", headers=headers) as socket:
            return socket.receive_text()

    good = bearer(KEY)
    assert talk(good) == "hello"
    assert talk({**good, "Origin": "http://testserver"}) == "hello"
    foreign = ({**good, "Origin": origin} for origin in ("http://elsewhere", "http://["))
    for headers in ({}, bearer("x"), *foreign):
        with pytest.raises(WebSocketDisconnect) as closed:
            talk(headers)
        assert closed.value.code == 1008


def test_keys_come_from_a_file_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the house\n{KEY}  # mine\n\n{OTHER}\n")
    expected = frozenset({digest(KEY), digest(OTHER)})
    assert read_keys(str(file)) == expected
    monkeypatch.setenv(access.KEYS_VARIABLE, f"{KEY}, {OTHER}")
    assert read_keys(None) == expected


def test_a_sign_of_comments_inside_a_key_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or its beginning would open too.
    file = tmp_path / "keys"
    file.write_text("abc#def # mine\n#ghi\n")
    assert read_keys(str(file)) == {digest("abc#def")}
    monkeypatch.setenv(access.KEYS_VARIABLE, "abc#def")
    assert read_keys(None) == {digest("abc#def")}


@pytest.mark.parametrize("key", ["schlüssel", "two words", "bell\a"])
def test_a_key_that_no_header_carries_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(access.KEYS_VARIABLE, key)
    with pytest.raises(ValueError, match="printable ASCII"):
        read_keys(None)


def test_no_key_is_no_open_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(access.KEYS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"SHEEN_API_KEYS.*auth to none"):
        read_keys(None)
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ValueError, match=r"keys_file .*holds no key"):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(ValueError, match=r"keys_file .*nothing"):
        read_keys(str(tmp_path / "nothing"))


# The body


def test_a_large_body_is_refused_with_and_without_its_length(
    client: TestClient, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(lambda: set_gate(Gate(None)))
    set_gate(Gate(None, max_body_bytes=1024))
    fits = json.dumps({"a": "x" * 1000}).encode()
    large = json.dumps({"a": "x" * 1100}).encode()

    def chunks(body: bytes) -> Iterator[bytes]:
        yield body[:500]
        yield body[500:]

    for body, status in ((fits, 200), (large, 413)):
        assert client.post("/v1/echo", content=body, headers=JSON).status_code == status
        response = client.post("/v1/echo", content=chunks(body), headers=JSON)
        assert response.status_code == status
    assert "1024" in response.json()["error"]["message"]


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
    client: TestClient, entries: list[Entry], method: str, path: str, status: int
) -> None:
    client.request(method, path, headers={"x-request-id": "mine"})
    [entry] = entries
    assert (entry.path, entry.status, entry.request_id) == (path, status, "mine")


def test_a_refusal_at_the_gate_is_entered_too(
    client: TestClient, keys: None, entries: list[Entry]
) -> None:
    client.post("/v1/echo")
    assert [entry.status for entry in entries] == [401]


def test_what_a_request_holds_is_released_however_it_ends(
    client: TestClient, entries: list[Entry]
) -> None:
    client.post("/v1/echo", json={})
    with pytest.raises(RuntimeError, match="middle"), TestClient(client.app) as strict:
        strict.get("/v1/cut")
    assert released == ["/v1/echo", "cut"]
    assert [entry.status for entry in entries] == [200, 200]


def test_what_is_logged_of_speech_holds_neither_text_nor_key(
    client: TestClient, keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(accounting, "_listeners", [])
    listen(lambda entry: seen.append(entry.fields()))
    client.post("/v1/echo", json={"input": "a secret text"}, headers=bearer(KEY))
    [fields] = seen
    assert (fields["path"], fields["status"]) == ("/v1/echo", 200)
    logged = json.dumps(fields)
    assert "secret" not in logged
    assert KEY not in logged


def test_the_pace_is_that_of_the_audio_after_the_first_chunk() -> None:
    entry = Entry("/v1/audio/speech", "id")
    entry.sent(0.5)
    assert entry.realtime_factor is None
    entry.sent(0.5)
    assert entry.realtime_factor is not None
    assert 0 <= entry.realtime_factor < 1
    assert entry.fields()["audio_s"] == 1.0
