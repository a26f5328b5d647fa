"""What the web expects before any route: HEAD, slashes, other origins. Behind it the real gate."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sheen.serve import request_log
from sheen.serve.access.keys import digest
from sheen.serve.access.middleware import (
    FrontMiddleware,
    Gate,
    GateMiddleware,
    set_gate,
    set_origins,
)
from sheen.serve.errors import install_error_handlers
from sheen.serve.request_log import RequestLogMiddleware

KEY = {"Authorization": "Bearer sesame"}
PAGE = "https://app.example"
ROUTES = ["/health", "/v1/models", "/v1/models/{model_id}"]


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI(redirect_slashes=False)
    install_error_handlers(app)
    app.add_middleware(GateMiddleware)
    app.add_middleware(FrontMiddleware)
    app.add_middleware(RequestLogMiddleware)

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> str:
        return "OK"

    @app.get("/v1/models")
    async def models() -> list[str]:
        return ["a", "b"]

    @app.get("/v1/models/{model_id:path}")
    async def model(model_id: str) -> str:
        return model_id

    @app.delete("/v1/models/{name}")
    async def delete(name: str) -> str:
        return name

    @app.post("/v1/audio/speech")
    async def speech(body: dict[str, Any]) -> dict[str, Any]:
        return body

    @app.websocket("/v1/talk")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")

    return app


@pytest.fixture(params=["", "/some/prefix"])
def client(app: FastAPI, request: pytest.FixtureRequest) -> Iterator[TestClient]:
    set_gate(Gate(None))
    # As Ray Serve passes a prefix: in the path too.
    base = f"http://server.example:8000{request.param}"
    with TestClient(app, base_url=base, root_path=request.param, follow_redirects=False) as client:
        yield client


@pytest.fixture
def keys(client: TestClient) -> Iterator[None]:
    set_gate(Gate(lambda: frozenset({digest("sesame")})))
    yield
    set_gate(Gate(None))


@pytest.fixture
def origins() -> Iterator[None]:
    set_origins((PAGE,))
    yield
    set_origins(())


# HEAD


@pytest.mark.parametrize("path", [*ROUTES, "/nothing"])
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    got, head = client.get(path), client.head(path)
    assert head.status_code == got.status_code
    assert head.headers == got.headers
    assert int(head.headers["Content-Length"]) == len(got.content) > 0
    assert not head.content


def test_head_of_what_has_no_get_names_what_it_has(client: TestClient) -> None:
    assert client.head("/v1/audio/speech").status_code == 405
    assert client.head("/v1/audio/speech").headers["Allow"] == "POST"
    assert client.post("/health").headers["Allow"] == "GET, HEAD"
    assert client.options("/v1/models/a").headers["Allow"] == "GET, HEAD, DELETE"


def test_head_needs_a_key_where_get_does(client: TestClient, keys: None) -> None:
    assert client.head("/v1/models").status_code == 401
    assert client.head("/v1/models", headers=KEY).status_code == 200
    assert client.head("/health").status_code == 200


# A slash too many


@pytest.mark.parametrize("query", ["", "?a=%2F&b"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/health/", "/health"),
        ("/v1/models/", "/v1/models"),
        ("/v1/models/a%20b/", "/v1/models/a%20b"),
        ("/v1/audio/speech/", "/v1/audio/speech"),
    ],
)
def test_a_slash_too_many_is_redirected_wherever_the_server_seems_to_be(
    client: TestClient, path: str, expected: str, query: str
) -> None:
    response = client.post(path + query, json={})
    assert response.status_code == 307  # which keeps method and body
    location = response.headers["Location"]
    for outside in ("https://voice.example/tts", "http://127.0.0.1:8443"):
        assert urljoin(outside + path, location) == outside + expected + query


@pytest.mark.parametrize("path", ["/nothing//", "//evil.example/", "/v1//"])
def test_no_path_redirects_to_another_host(client: TestClient, path: str) -> None:
    location = client.get(path).headers.get("Location", "")
    assert urljoin(f"http://server.example{path}", location).startswith("http://server.example/")


# Other origins


def preflight(client: TestClient, origin: str) -> Any:
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    return client.options("/v1/audio/speech", headers=headers)


def test_a_page_that_is_allowed_may_ask_and_read_with_a_key(
    client: TestClient, keys: None, origins: None
) -> None:
    asked = preflight(client, PAGE)  # browsers send no key with it
    assert asked.status_code == 200
    assert asked.headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in asked.headers["Access-Control-Allow-Methods"]
    assert "authorization" in asked.headers["Access-Control-Allow-Headers"]
    for headers, status in ((KEY, 200), ({}, 401)):  # it must be able to read the refusal too
        answer = client.post("/v1/audio/speech", json={}, headers={"Origin": PAGE, **headers})
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]


@pytest.mark.parametrize("allowed", [(), (PAGE,)])
def test_a_page_of_an_origin_that_is_not_listed_may_not_ask(
    client: TestClient, allowed: tuple[str, ...]
) -> None:
    set_origins(allowed)
    try:
        for origin in ("https://elsewhere.example", f"{PAGE}.evil.example", "null"):
            asked = preflight(client, origin)
            assert asked.status_code in (400, 405)
            answer = client.get("/v1/models", headers={"Origin": origin})
            for response in (asked, answer):
                assert "Access-Control-Allow-Origin" not in response.headers
    finally:
        set_origins(())


def test_a_preflight_that_is_refused_is_logged_with_its_code(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[request_log.RequestRecord] = []
    monkeypatch.setattr(request_log, "_listeners", [records.append])
    set_origins((PAGE,))
    try:
        for origin in ("https://elsewhere.example", PAGE):
            preflight(client, origin)
        # Asks for no method: a request like others, which pages of any host may make.
        client.options("/v1/models", headers={"Origin": "https://elsewhere.example"})
    finally:
        set_origins(())
    refused, allowed, plain = [(record.status, record.code) for record in records]
    assert (refused, allowed) == ((400, "foreign_origin"), (200, None))
    assert plain[1] != "foreign_origin"


def test_pages_of_all_origins_may_ask_where_that_is_written_down(client: TestClient) -> None:
    set_origins(("*",))
    try:
        assert preflight(client, "https://any.example").status_code == 200
        answer = client.get("/v1/models", headers={"Origin": "https://any.example"})
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
        assert talk(client, "https://any.example") == "hello"
    finally:
        set_origins(())


def talk(client: TestClient, origin: str) -> str:
    with client.websocket_connect("/v1/talk", headers={"Origin": origin}) as socket:
        return socket.receive_text()


def test_a_websocket_follows_the_same_list(client: TestClient, origins: None) -> None:
    assert talk(client, PAGE) == "hello"
    with pytest.raises(WebSocketDisconnect):
        talk(client, "https://elsewhere.example")
    set_origins(())
    with pytest.raises(WebSocketDisconnect):
        talk(client, PAGE)
