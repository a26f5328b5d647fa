"""What Ray's proxy keeps to itself: the middleware under uvicorn, with the parser that is set
there, before an application that notes what reaches it. In Ray's own proxy: test_serve_load.py and
test_serve.py in tests/e2e."""

import asyncio
import json
import queue
import select
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from helpers.doors import WAIT_S, answer, begin, closed, line, listening, text_of, trickle
from sheen.serve.config import BATCH, MAX_BODIES, SPEECH, VOICES, ClientLimits, ServeArgs
from sheen.serve.proxy.install import HEADER_BYTES, install, rules_of
from sheen.serve.proxy.middleware import BodyRule, ProxyMiddleware, Rules

LINGER = "sheen.serve.proxy.middleware.LINGER_S"
NEVER_S = 3600.0
SIZE = 2048
ROOM = 3000
UPLOADS = "/uploads"
RULES = Rules(BodyRule(SIZE, NEVER_S), {UPLOADS: BodyRule(64, NEVER_S)}, ROOM, SIZE)
LATE = Rules(BodyRule(SIZE, 0.2), {}, ROOM, SIZE)


class Behind:
    """An application that answers with what it got, and Serve's routes to it and to another."""

    def __init__(self) -> None:
        self.received: list[Message] = []
        self.paths: list[str] = []
        self.headers: list[dict[bytes, bytes]] = []
        self.ended: queue.SimpleQueue[Message] = queue.SimpleQueue()
        """How each WebSocket ended."""

    def match_route(self, path: str) -> tuple[str, Any, bool] | None:
        prefix = "/other" if path.startswith("/other") else "/ours"
        identity = SimpleNamespace(app_name=prefix[1:])
        return prefix, SimpleNamespace(deployment_id=identity), False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        self.paths.append(scope["path"])
        self.headers.append(dict(scope["headers"]))
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] != "websocket.disconnect":
                self.received.append(message)
                await send({"type": "websocket.send", "text": str(len(message["text"]))})
            self.ended.put(message)
            return
        self.received.append(await receive())
        headers = [(b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        body = json.dumps({"error": {"code": "none"}}).encode()
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def behind() -> Behind:
    return Behind()


@pytest.fixture(scope="module")
def middleware(behind: Behind) -> ProxyMiddleware:
    return ProxyMiddleware(behind, behind)


@pytest.fixture(scope="module")
def server(middleware: ProxyMiddleware) -> Iterator[str]:
    with listening(middleware, http=H11Protocol, h11_max_incomplete_event_size=4096) as url:
        yield url


@pytest.fixture
def url(
    server: str, behind: Behind, middleware: ProxyMiddleware, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setattr(LINGER, 0.2)
    behind.received.clear()
    behind.paths.clear()
    behind.headers.clear()
    middleware.refused.clear()
    middleware.rules["ours"] = RULES
    return f"{server}/ours"


def test_a_body_that_comes_bit_by_bit_is_passed_on_once_when_it_is_whole(
    url: str, behind: Behind, middleware: ProxyMiddleware
) -> None:
    body = bytes(range(256))
    for size in (len(body), None):
        behind.received.clear()
        connection = begin(url, size)
        for at in range(256):
            connection.sendall(body[at : at + 1] if size else b"1\r\n%c\r\n" % body[at])
        if size is None:
            connection.sendall(b"0\r\n\r\n")
        assert answer(connection)[0] == 200
        [whole] = behind.received
        assert whole["body"] == body
        assert not whole["more_body"]
    assert middleware.held == 0


@pytest.mark.parametrize("size", [500, None])
def test_a_body_that_never_ends_is_answered_in_time_and_never_passed_on(
    url: str, behind: Behind, middleware: ProxyMiddleware, size: int | None
) -> None:
    middleware.rules["ours"] = LATE
    piece = b" " if size else b"1\r\n \r\n"
    assert trickle(begin(url, size), piece) == (408, "body_timeout")
    assert behind.received == []
    assert middleware.refused == {"ours": {(408, "body_timeout"): 1}}
    assert middleware.held == 0


def test_a_client_that_goes_on_sending_still_reads_why_it_is_too_late(
    url: str, middleware: ProxyMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LINGER, NEVER_S)
    middleware.rules["ours"] = LATE
    with begin(url, 500, b"{") as connection:
        assert select.select([connection], [], [], WAIT_S)[0]
        for _ in range(20):
            connection.sendall(b" ")
            time.sleep(0.002)
        assert connection.recv(12) == b"HTTP/1.1 408"


def test_a_client_that_leaves_in_mid_body_leaves_nothing(
    url: str, behind: Behind, middleware: ProxyMiddleware
) -> None:
    with begin(url, 500, b"{"):
        pass
    assert answer(begin(url, 2, b"{}"))[0] == 200  # after the other
    assert [message["body"] for message in behind.received] == [b"{}"]
    assert middleware.held == 0


def test_what_the_application_refuses_reaches_it(url: str, behind: Behind) -> None:
    """A body that is too large, by its length, in chunks, or for its route."""
    assert answer(begin(url, SIZE + 1, b"{"))[0] == 200
    more = b"x" * (SIZE + 1)
    assert answer(begin(url, None, b"%x\r\n%s\r\n" % (len(more), more)))[0] == 200
    by_length, in_chunks = behind.received
    assert by_length["body"] == b"{"
    assert len(in_chunks["body"]) > SIZE
    assert by_length["more_body"]
    assert in_chunks["more_body"]


def test_each_route_has_its_own_rule(middleware: ProxyMiddleware, behind: Behind) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 65, "more_body": True}

    async def send(message: Message) -> None:
        pass

    behind.received.clear()
    middleware.rules["ours"] = RULES
    scope = {"type": "http", "path": f"/base/ours{UPLOADS}", "root_path": "/base", "headers": []}
    asyncio.run(middleware(scope, receive, send))
    assert len(behind.received[0]["body"]) == 65
    asyncio.run(middleware(scope | {"path": "/base/ours/x"}, receive, send))
    assert len(behind.received[1]["body"]) == 65 * (SIZE // 65 + 1)


def test_beyond_the_room_for_all_bodies_they_are_passed_on_as_they_come(
    url: str, behind: Behind, middleware: ProxyMiddleware
) -> None:
    half = b"x" * (ROOM // 2)
    with begin(url, SIZE, half) as first, begin(url, SIZE, half) as second:
        first.sendall(b"y")  # with this or the second half there is one byte too many
        [passed], _, _ = select.select([first, second], [], [], WAIT_S)
        assert passed.recv(12) == b"HTTP/1.1 200"
        [incomplete] = behind.received
        assert incomplete["more_body"]


def raw(url: str, *pieces: bytes) -> tuple[bytes, bytes]:
    """Headers and body of the answer to a request, up to the end of the connection."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), WAIT_S) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.05)  # a read of its own, mostly; right with one too
        with connection.makefile("rb") as answered:
            headers, _, body = answered.read().partition(b"\r\n\r\n")
    return headers.lower(), body


OFFER = (
    b"POST /ours HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
)
"""As Java's HTTP client sends it, and curl --http2."""


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "rest",
    [
        (b"Content-Length: 7\r\n\r\n", b'{"a":1}'),
        (b"Transfer-Encoding: chunked\r\n\r\n", b'7\r\n{"a":1}\r\n0\r\n\r\n'),
    ],
)
def test_who_offers_http_2_has_its_body_read(
    url: str, behind: Behind, rest: tuple[bytes, bytes], apart: bool
) -> None:
    pieces = (OFFER + rest[0], rest[1])
    headers, _ = raw(url, *(pieces if apart else [b"".join(pieces)]))
    assert headers.startswith(b"http/1.1 200")
    [whole] = behind.received
    assert whole["body"] == b'{"a":1}'


def test_a_client_of_http_1_0_gets_no_chunks(url: str) -> None:
    headers, body = raw(url, b"POST /ours HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}")
    assert b"transfer-encoding" not in headers
    assert json.loads(body) == {"error": {"code": "none"}}


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("http://here/ours/a%20b?c=http://d", "/ours/a b"),
        ("HTTP://here:80/ours", "/ours"),
        ("https://here/ours//x", "/ours//x"),
        ("http://here", "/"),
    ],
)
def test_a_target_may_have_its_host(url: str, behind: Behind, target: str, path: str) -> None:
    raw(url, f"GET {target} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
    assert behind.paths == [path]


def test_two_lengths_are_refused(url: str, behind: Behind, middleware: ProxyMiddleware) -> None:
    lengths = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    headers, body = raw(url, b"POST /ours HTTP/1.1\r\nHost: here\r\n" + lengths)
    assert headers.startswith(b"http/1.1 400")
    assert json.loads(body)["error"]["code"] == "two_lengths"
    assert behind.paths == []
    assert middleware.refused == {"ours": {(400, "two_lengths"): 1}}


def test_headers_are_bounded(url: str, behind: Behind) -> None:
    headers, _ = raw(url, b"POST /ours HTTP/1.1\r\nHost: here\r\nX-Large: " + b"x" * 5000)
    assert headers.startswith(b"http/1.1 400")
    assert behind.paths == []


def test_headers_that_ray_could_not_decode_are_made_readable(url: str, behind: Behind) -> None:
    kept = "ä".encode()
    raw(
        url,
        b"POST /ours HTTP/1.1\r\nHost: here\r\nX-Request-ID: \xfc\r\nX-Kept: "
        + kept
        + b"\r\nContent-Length: 2\r\n\r\n{}",
    )
    [headers] = behind.headers
    assert headers[b"x-request-id"] == "ü".encode()
    assert headers[b"x-kept"] == kept


def test_other_applications_are_left_alone(server: str, behind: Behind, url: str) -> None:
    assert answer(begin(f"{server}/other", 500, b"{"))[0] == 200
    assert behind.received[0]["more_body"]
    with line(f"{server}/other", compression=None) as opened:
        opened.send(text_of(SIZE + 1))
        assert opened.recv(WAIT_S) == str(len(text_of(SIZE + 1)))
    behind.ended.get(timeout=WAIT_S)
    assert all(path.startswith("/other") for path in behind.paths)


def test_a_message_is_refused_by_the_length_that_it_announces(url: str, behind: Behind) -> None:
    """Before a byte of it has come."""
    head = struct.pack("!BBQ4s", 0x81, 0xFF, 15_000_000, bytes(4))
    with line(url) as opened:
        opened.socket.sendall(head)
        assert closed(opened) == (1009, "message_too_large")
    assert behind.ended.get(timeout=WAIT_S)["code"] == 1009
    assert behind.received == []


def test_a_message_is_refused_when_it_inflates_too_far(url: str, behind: Behind) -> None:
    deflating = zlib.compressobj(wbits=-12)
    data = deflating.compress(bytes(1_000_000)) + deflating.flush(zlib.Z_SYNC_FLUSH)
    data = data[:-4]
    assert 126 <= len(data) <= SIZE
    with line(url, compression="deflate") as opened:
        opened.socket.sendall(struct.pack("!BBH4s", 0xC1, 0xFE, len(data), bytes(4)) + data)
        assert closed(opened) == (1009, "message_too_large")
    assert behind.ended.get(timeout=WAIT_S)["code"] == 1009
    assert behind.received == []


def test_who_sends_all_of_a_large_message_still_reads_why_it_is_refused(
    url: str, behind: Behind
) -> None:
    with line(url, compression=None) as opened:
        opened.send(text_of(8_000_000))
        assert closed(opened) == (1009, "message_too_large")
    assert behind.ended.get(timeout=WAIT_S)["code"] == 1009


def test_clients_on_asyncio_read_the_refusal_of_a_large_message_too(
    url: str, behind: Behind
) -> None:
    """aiohttp's answers the close frame, and then has no code if it cannot."""

    async def send_to_it() -> tuple[int | None, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/x", max_msg_size=0) as opened,
        ):
            with suppress(ConnectionError):
                await opened.send_str(text_of(8_000_000))
            told = await opened.receive_json(timeout=WAIT_S)
            await opened.receive(WAIT_S)
            return opened.close_code, told["error"]["code"]

    assert asyncio.run(send_to_it()) == (1009, "message_too_large")
    assert behind.ended.get(timeout=WAIT_S)["code"] == 1009


def test_a_message_that_fits_to_the_byte_passes(url: str, behind: Behind) -> None:
    with line(url) as opened:
        for _ in range(3):
            opened.send(message := text_of(SIZE))
            assert opened.recv(WAIT_S) == str(len(message))
    behind.ended.get(timeout=WAIT_S)


def test_a_close_of_another_kind_is_uvicorns(url: str, behind: Behind) -> None:
    with line(url) as opened:
        opened.socket.sendall(b"\x83\x80\0\0\0\0")  # an opcode that does not exist
        assert closed(opened) == (1002, "")
    assert behind.ended.get(timeout=WAIT_S)["code"] == 1002


def test_a_proxy_is_told_the_limits_again_and_tells_what_it_has_refused(behind: Behind) -> None:
    config: Any = SimpleNamespace(loaded=False, loaded_app=behind)
    starting: Future[Any] = Future()
    proxy = SimpleNamespace(
        _start_http_server_task=starting, http_proxy=SimpleNamespace(proxy_router=behind)
    )
    rules = rules_of(ClientLimits())
    assert install(proxy, "ours", rules) == {}
    starting.set_result((None, SimpleNamespace(config=config)))
    assert install(proxy, "ours", rules) == {}
    assert config.loaded_app is behind  # nothing listens yet
    config.loaded = True
    assert install(proxy, "ours", rules) == {}
    assert install(proxy, "other", rules) == {}
    middleware = config.loaded_app
    assert middleware.app is behind
    assert (config.http_protocol_class, config.h11_max_incomplete_event_size) == (
        H11Protocol,
        HEADER_BYTES,
    )
    late = (408, "body_timeout")
    middleware.refused = {"ours": Counter({late: 2}), "other": Counter({late: 1})}
    changed = rules_of(ClientLimits(max_body_bytes=4096))
    assert install(proxy, "ours", changed) == {late: 2}
    assert install(proxy, "ours", changed) == {}
    assert middleware.rules == {"ours": changed, "other": rules}


def test_rules_are_the_limits_of_each_route() -> None:
    args = ServeArgs(voices_folder="/voices", ref_audio=True, max_body_bytes=4096)
    rules = rules_of(args)
    assert rules.body == BodyRule(4096, args.body_timeout_s)
    for path in (VOICES, SPEECH, BATCH):
        assert rules.routes[path] == BodyRule(*args.body(path))
    assert rules.routes[VOICES].seconds == 6 * args.body_timeout_s
    assert rules.held_bytes == MAX_BODIES * 4096
