"""Every way in, and every limit it has: how to break it, and what a client then sees.

`DOORS` is the table. Each row breaks its limit on a server at a URL and returns the status or close
code, and the error's code. Rows ask for nothing but a server with the limits it is given.
"""

import contextlib
import http.client
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from sheen.serve.config import MAX_BODIES, ClientLimits

WAIT_S = 120
"""Far longer than anything takes: what a failing server costs, never a passing one."""
KEY = "a-key-of-the-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
PATH = "/v1/audio/speech"
PLACES = 2
"""Of the servers in tests: one slot, one place to wait."""
FIELDS = {"model": "sheen", "voice": "alloy", "response_format": "pcm"}  # every server has it
START = {"type": "start", **FIELDS}
Outcome = tuple[int, str]


@contextlib.contextmanager
def listening(app: ASGIApp, **options: Any) -> Iterator[str]:
    """An application under uvicorn, with these options of its own; its address."""
    options = {"log_level": "critical", "timeout_graceful_shutdown": 1} | options
    server = uvicorn.Server(uvicorn.Config(app, **options))
    # It listens before the server runs: whoever connects early waits, and nobody polls.
    with socket.create_server(("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{opened.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAIT_S)


# By HTTP


def begin(url: str, size: int | None, first: bytes = b"") -> socket.socket:
    """A POST whose headers and first bytes are sent; `size` None: in chunks."""
    place = urlsplit(url)
    length = "Transfer-Encoding: chunked" if size is None else f"Content-Length: {size}"
    connection = socket.create_connection((place.hostname, place.port), WAIT_S)
    connection.sendall(
        f"POST {place.path}{PATH} HTTP/1.1\r\nHost: {place.netloc}\r\n{length}\r\n"
        f"Content-Type: application/json\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        + first
    )
    return connection


def answer(connection: socket.socket, closes: bool = True) -> Outcome:
    """Status and code of an answer, after which the server closes the connection, or does not."""
    with connection, http.client.HTTPResponse(connection) as response:
        connection.settimeout(WAIT_S)
        response.begin()
        code = json.loads(response.read())["error"]["code"]
        assert (response.getheader("connection") == "close") == closes
        if closes:
            assert connection.recv(1) == b""
        return response.status, code


def trickle(connection: socket.socket, piece: bytes) -> Outcome:
    """Send on, bit by bit, until something is answered."""
    deadline = time.monotonic() + WAIT_S
    while not select.select([connection], [], [], 0.02)[0]:
        assert time.monotonic() < deadline, "nothing ends it"
        connection.sendall(piece)
    return answer(connection)


def too_large_by_its_length(url: str, limits: ClientLimits) -> Outcome:
    size = limits.max_body_bytes + 1
    return answer(begin(url, size, b"x" * size), closes=False)


def too_large_in_chunks(url: str, limits: ClientLimits) -> Outcome:
    size = limits.max_body_bytes + 1
    return answer(begin(url, None, b"%x\r\n%s\r\n" % (size, b"x" * size)))


def trickling(url: str, limits: ClientLimits) -> Outcome:
    return trickle(begin(url, limits.max_body_bytes, b"{"), b" ")


def trickling_in_chunks(url: str, limits: ClientLimits) -> Outcome:
    return trickle(begin(url, None, b"1\r\n{\r\n"), b"1\r\n \r\n")


def no_body_at_all(url: str, limits: ClientLimits) -> Outcome:
    return answer(begin(url, 500))


def the_oldest_of_too_many(url: str, limits: ClientLimits) -> Outcome:
    with contextlib.ExitStack() as stack:
        first = begin(url, 500, b"{")
        for _ in range(MAX_BODIES):
            stack.enter_context(begin(url, 500, b"{"))
        return answer(first)


# On a WebSocket


@contextlib.contextmanager
def line(url: str, *messages: dict[str, Any], **options: Any) -> Iterator[ClientConnection]:
    """A WebSocket on which these messages have been said."""
    options = {"additional_headers": BEARER, "open_timeout": WAIT_S, "proxy": None} | options
    with connect(f"{url.replace('http', 'ws', 1)}{PATH}/stream", **options) as opened:
        for message in messages:
            opened.send(json.dumps(message))
        yield opened


def closed(opened: ClientConnection, pause_s: float | None = None) -> Outcome:
    """The close code, and the code of the last error before it. With a pause, the client says
    something harmless after each."""
    code, deadline = "", time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            if pause_s is not None:
                opened.send('{"type": "cancel"}')
                time.sleep(pause_s)
        except ConnectionClosed:
            pause_s = None  # what came before it is still to be read
        try:
            item = opened.recv(WAIT_S if pause_s is None else 0)
        except TimeoutError:
            continue
        except ConnectionClosed:
            return opened.close_code or 0, code
        if isinstance(item, str) and "error" in (told := json.loads(item)):
            code = told["error"]["code"]
    raise AssertionError("nothing closes it")


def text_of(size: int) -> str:
    """A message of so many bytes. It is mostly one letter: deflated it is small."""
    frame = json.dumps({"type": "text", "text": ""})
    return frame.replace('""', f'"{"é" * ((size - len(frame)) // 2)}"') + " " * (
        (size - len(frame)) % 2
    )


def large_message(url: str, limits: ClientLimits) -> Outcome:
    with line(url, START, compression=None) as opened:
        opened.send(text_of(limits.max_body_bytes + 1))
        return closed(opened)


def large_message_deflated(url: str, limits: ClientLimits) -> Outcome:
    with line(url, START, compression="deflate") as opened:
        opened.send(text_of(limits.max_body_bytes + 1))
        return closed(opened)


def large_binary_message(url: str, limits: ClientLimits) -> Outcome:
    with line(url, START) as opened:
        opened.send(bytes(limits.max_body_bytes + 1))
        return closed(opened)


def large_message_before_start(url: str, limits: ClientLimits) -> Outcome:
    with line(url) as opened:
        opened.send(text_of(limits.max_body_bytes + 1))
        return closed(opened)


def many_messages(url: str, limits: ClientLimits) -> Outcome:
    with line(url, START) as opened:
        return closed(opened, 0.0)


def no_start(url: str, limits: ClientLimits) -> Outcome:
    with line(url) as opened:
        return closed(opened)


def anything_but_a_start(url: str, limits: ClientLimits) -> Outcome:
    with line(url) as opened:
        return closed(opened, 2 / limits.max_messages_per_s)


def one_too_many(url: str, limits: ClientLimits) -> Outcome:
    with contextlib.ExitStack() as stack:
        for _ in range(PLACES):
            stack.enter_context(line(url, START))
        return closed(stack.enter_context(line(url)))


Break = Callable[[str, ClientLimits], Outcome]

DOORS: dict[Break, Outcome] = {
    too_large_by_its_length: (413, "body_too_large"),
    too_large_in_chunks: (413, "body_too_large"),
    trickling: (408, "body_timeout"),
    trickling_in_chunks: (408, "body_timeout"),
    no_body_at_all: (408, "body_timeout"),
    the_oldest_of_too_many: (408, "body_timeout"),
    large_message: (1009, "message_too_large"),
    large_message_deflated: (1009, "message_too_large"),
    large_binary_message: (1009, "message_too_large"),
    large_message_before_start: (1009, "message_too_large"),
    many_messages: (1008, "too_many_messages"),
    no_start: (1008, "start_timeout"),
    anything_but_a_start: (1008, "start_timeout"),
    one_too_many: (1013, "too_many_sockets"),
}

TIMED = (trickling, trickling_in_chunks, no_body_at_all, no_start, anything_but_a_start)
"""Rows that take as long as a limit of time: fewer bodies and WebSockets than servers here allow,
so that all can be tried at once."""
