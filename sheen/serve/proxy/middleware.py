"""ASGI middleware in Ray Serve's HTTP proxy: what is incomplete or too large stays there.

Owns holding back a request until its body is complete, the size of a WebSocket message, and what of
a request's head Ray's proxy would not understand. The proxy passes every piece of a body to the
replica by a call of its own, which costs both processes a millisecond or two, and counts a request
whose body trickles as load to scale up for; a WebSocket message is read whole, and copied through
the object store, before the replica can refuse it. Here a body costs one call, when it is complete,
and a message is refused from the length that its frame announces. The replica's own limits
(`sheen.serve.access`) stay as they are: they hold without this middleware, and for what it lets
through.

Runs in the proxy's process: it imports no torch, and `sheen.serve.proxy.install` tells it all.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.frames import Frame, Opcode

from sheen.serve.errors import APIError, body_late, error_message, error_response, message_too_large

TOO_BIG = 1009
"""Close code of WebSockets (RFC 6455, 7.4.1)."""
LINGER_S = 2.0
"""Longest time for a client to read an answer before its body, seconds."""
QUIET_S = 1.0
"""A WebSocket that is refused is closed when nothing has come for so long, seconds."""


@dataclass(frozen=True)
class BodyRule:
    """What is held back of one route's requests."""

    size: int
    """Bytes; of a larger body the replica gets what has come, and refuses it."""
    seconds: float
    """From the request's headers to its body's last byte."""


@dataclass(frozen=True)
class Rules:
    """One application's limits."""

    body: BodyRule
    routes: Mapping[str, BodyRule]
    """By path within the application, where it is another than `body`."""
    held_bytes: int
    """Of all incomplete bodies together; what is more goes to the replica as it comes."""
    message_bytes: int
    """Of a WebSocket message, decompressed."""


class Router(Protocol):
    """Serve's own table of routes."""

    def match_route(self, target_route: str) -> tuple[str, Any, bool] | None:
        """The route prefix, the handle of its deployment, and whether that is in another
        language."""


@dataclass
class ProxyMiddleware:
    """Requests of applications that have rules; all others pass through."""

    app: ASGIApp
    router: Router
    rules: dict[str, Rules] = field(default_factory=dict)
    """By application."""
    refused: dict[str, Counter[tuple[int, str]]] = field(default_factory=dict)
    """Number of answers by the status and code of their error, by application."""
    held: int = 0
    """Bytes of incomplete bodies."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            _to_origin_form(scope)
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if (match := self.router.match_route(path)) is not None:
                prefix, handle, _ = match
                name = handle.deployment_id.app_name
                if (rules := self.rules.get(name)) is not None:
                    scope["headers"] = in_utf8(scope["headers"])
                    if scope["type"] == "websocket":
                        bound_messages(receive, rules.message_bytes)
                    else:
                        local = path.removeprefix(prefix.rstrip("/"))
                        rule = rules.routes.get(local, rules.body)
                        await self._request(name, rules, rule, scope, receive, send)
                        return
        await self.app(scope, receive, send)

    async def _request(
        self, name: str, rules: Rules, rule: BodyRule, scope: Scope, receive: Receive, send: Send
    ) -> None:
        headers = Headers(scope=scope)
        length = headers.get("content-length", "")
        if length and "transfer-encoding" in headers:
            # h11 ignores the length, a proxy in front might not (RFC 9112, 6.3).
            error = APIError(400, "Content-Length and Transfer-Encoding", code="two_lengths")
            await self._refuse(name, error, receive, send)
            return
        if length.isdecimal() and int(length) > rule.size:
            await self.app(scope, receive, send)  # refused by its length
            return
        body = bytearray()
        try:
            async with asyncio.timeout(rule.seconds):
                while (message := await receive()).get("more_body", False):
                    body += message["body"]
                    self.held += len(message["body"])
                    if len(body) > rule.size or self.held > rules.held_bytes:
                        break
        except TimeoutError:
            await self._refuse(name, body_late(rule.seconds), receive, send)
            return
        finally:
            self.held -= len(body)
        if message["type"] != "http.request":  # its client has left
            return
        if body:
            last = message["body"] if not message.get("more_body", False) else b""
            message = {**message, "body": bytes(body + last)}
        await self.app(scope, _again(message, receive), send)

    async def _refuse(self, name: str, error: APIError, receive: Receive, send: Send) -> None:
        assert error.code is not None
        self.refused.setdefault(name, Counter())[error.status, error.code] += 1
        await _answer_and_close(error_response(error), receive, send)


def _to_origin_form(scope: Scope) -> None:
    """Reduce a target with a scheme and a host, which h11 leaves as it is, to its path (RFC 9112,
    3.2.2)."""
    root = scope.get("root_path", "")
    path = scope["path"].removeprefix(root)
    if path.lower().startswith(("http://", "https://")):
        path = "/" + path.partition("://")[2].partition("/")[2]
        scope["path"], scope["raw_path"] = root + path, quote(root + path).encode()


def in_utf8(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers whose values are UTF-8; what is not is taken for Latin-1. Serve decodes some of them
    (the ids of the request and the session), and answers 500 to what it cannot decode."""
    return [
        (name, value if is_utf8(value) else value.decode("latin-1").encode())
        for name, value in headers
    ]


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _answer_and_close(answer: Response, receive: Receive, send: Send) -> None:
    """Answer a request whose body may never end, and close the connection once its client has.

    Until then, LINGER_S at most, what still comes is read and dropped: the system resets a
    connection that is closed with unread input, and a client that goes on sending could not read
    the answer.
    """
    answer.headers["Connection"] = "close"
    start = {"type": "http.response.start", "status": answer.status_code}
    await send({**start, "headers": answer.raw_headers})
    body = {"type": "http.response.body"}
    await send({**body, "body": answer.body, "more_body": True})  # it has all of Content-Length
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive())["type"] == "http.request":
                pass
    await send({**body, "body": b"", "more_body": False})


def _again(first: Message, receive: Receive) -> Receive:
    """A `receive` that returns `first` first."""
    waiting = [first]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


def bound_messages(receive: Receive, size: int) -> None:
    """Let uvicorn refuse messages of more than `size` bytes, decompressed, on the WebSocket whose
    `receive` this is: with the error, and close code 1009.

    It refuses by the announced length, or when `size` bytes have been inflated. What the client
    sends of the message is then read and dropped until it has closed, or has sent nothing for
    QUIET_S: a socket closed with unread input is reset, and the client could not read why; of one
    closed for writing alone, clients on asyncio (aiohttp) lose the code. uvicorn's own
    `ws_max_size` is for all applications, and it closes at once. Does nothing under another server
    than uvicorn with `websockets`.
    """
    protocol: Any = getattr(receive, "__self__", None)
    connection: Any = getattr(protocol, "conn", None)
    if not hasattr(connection, "max_message_size"):
        return
    otherwise = protocol.handle_parser_exception
    transport = protocol.transport
    refused = False
    latest = 0.0
    """When the socket is closed at the latest."""

    def close_when_quiet() -> None:
        if protocol.close_timer is not None:
            protocol.close_timer.cancel()
        at = min(protocol.loop.time() + QUIET_S, latest)
        protocol.close_timer = protocol.loop.call_at(at, transport.close)

    def refuse() -> None:
        nonlocal refused, latest
        if refused:  # more of the same message
            close_when_quiet()
            return
        close = connection.close_sent
        if close is None or close.code != TOO_BIG or protocol.close_sent:
            otherwise()
            return
        refused = protocol.close_sent = protocol.disconnected = True
        reason = {"code": close.code, "reason": close.reason}
        protocol.queue.put_nowait({"type": "websocket.disconnect", **reason})
        told = json.dumps(error_message(message_too_large(size))).encode()
        frames = [Frame(Opcode.TEXT, told).serialize(mask=False), *connection.data_to_send()]
        transport.write(b"".join(frames))
        if protocol.read_paused:
            protocol.read_paused = False
            transport.resume_reading()
        latest = protocol.loop.time() + protocol.close_timeout
        close_when_quiet()

    connection.max_message_size = size
    protocol.handle_parser_exception = refuse
