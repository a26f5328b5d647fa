"""What a request passes before the application: HEAD, slashes and CORS, then the gate.

Owns both as ASGI middleware. The front does what the web expects of any server: HEAD wherever GET
is, a path with a slash too many, and pages of other origins, if the operator names them (CORS). The
gate asks who may come in (bearer keys, and where a WebSocket comes from) and that bodies keep to
their limits: what it refuses no handler sees. What keys are is `keys`', how much is too much
`limits`'. One process has one of each, because the application is made when the module is imported,
and its settings are known later.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sheen.serve.access.keys import is_known
from sheen.serve.access.limits import POLICY_VIOLATION, Bodies, Body, declared, too_large
from sheen.serve.config import Limits
from sheen.serve.errors import APIError, error_response
from sheen.serve.request_log import local_path, refused

EXPOSED = (
    "Retry-After",
    "x-request-id",
    "x-sample-rate",
    "x-finish-reason",
    "x-sheen-ignored",
    "x-word-timestamps",
    "x-word-timestamps-omitted",
)
"""Headers of an answer that a page may read."""

_origins: tuple[str, ...] = ()


def set_origins(origins: tuple[str, ...]) -> None:
    """Pages of these origins may ask, all for `*`, beside pages of the server's own."""
    global _origins
    _origins = origins


def may_ask(origin: str) -> bool:
    """Whether pages of another origin may ask."""
    return "*" in _origins or origin in _origins


class FrontMiddleware:
    """Leaves WebSockets alone: where those come from, the gate asks `may_ask`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not _origins:
            await self._answer(scope, receive, send)
        else:
            if self._cors is None or self._cors.allow_origins != _origins:
                self._cors = CORSMiddleware(
                    self._answer,
                    allow_origins=_origins,
                    allow_methods=("GET", "HEAD", "POST", "DELETE"),
                    allow_headers=("*",),
                    expose_headers=EXPOSED,
                    allow_private_network=True,
                )
            headers = Headers(scope=scope)
            preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
            if preflight and (origin := headers.get("origin")) and not may_ask(origin):
                refused(scope, APIError(400, "a page of another host", code="foreign_origin"))
            await self._cors(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if location := _without_slash(scope):
            # Relative: what a proxy before the server made of its address, nobody here knows.
            answer = Response(status_code=307, headers={"Location": location})
            await answer(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope["method"], send = "GET", _headers_of(send)
        await self._app(scope, receive, send)


def _without_slash(scope: Scope) -> str | None:
    """Where a path with a slash at its end should go, relative to it."""
    last = local_path(scope)[:-1].rpartition("/")[2]
    if not last or not scope["path"].endswith("/"):
        return None
    query = scope["query_string"].decode("latin-1")
    return f"../{quote(last)}" + (f"?{query}" if query else "")


def _headers_of(send: Send) -> Send:
    """`send` for an answer without its body."""

    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return sent


PROTECTED = "/v1/"
"""Paths that need a key. The rest (health, the page, the documentation) says nothing of a model."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""What stands before the key among the subprotocols of a WebSocket: the one place where a browser
lets a page put it, as OpenAI's own endpoints take it. Never a query, which proxies log."""
RETRY_S = 5

Digests = frozenset[str]


def no_digests() -> Digests:
    return frozenset()


@dataclass
class Gate:
    """The process's settings. `digests` gives the hashes of the keys that are good now, None when
    that is not known; it is None itself where no key is needed. Until it is set, none opens."""

    digests: Callable[[], Digests | None] | None = no_digests
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.bodies = Bodies(self.limits.max_bodies)


_gate = Gate()


def set_gate(gate: Gate) -> None:
    """Serve pickles the application with what it names: it can call this, and not set a name."""
    global _gate
    _gate = gate


def check_key(scope: Scope) -> None:
    """APIError unless a request, or a WebSocket that is open, brings a key that is good now."""
    if _gate.digests is None or not f"{local_path(scope)}/".startswith(PROTECTED):
        return
    digests = _gate.digests()
    if digests is None:
        raise APIError(
            503, "the server cannot read its keys", code="keys_unreadable", retry_after_s=RETRY_S
        )
    if not any(is_known(key, digests) for key in _keys(scope)):
        raise APIError(
            401,
            "no valid API key; send the header Authorization: Bearer KEY",
            code="invalid_api_key",
        )


def _keys(scope: Scope) -> Iterator[str]:
    """What a request brings as its keys."""
    kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield key.strip()
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            yield protocol.removeprefix(KEY_PROTOCOL)


def answered_protocol(scope: Scope) -> str | None:
    """The subprotocol to accept a WebSocket with: the first that is offered and is no key. Browsers
    close one whose offers were all passed over."""
    offered: list[str] = scope.get("subprotocols", [])
    return next((name for name in offered if not name.startswith(KEY_PROTOCOL)), None)


def same_origin(headers: Headers) -> bool:
    """Whether a WebSocket comes from no web page, or from one of this host: browsers let any page
    open one anywhere."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # no address
        return False


def check_origin(scope: Scope) -> None:
    """APIError for a WebSocket of another host's page, where no key is needed, unless
    args.cors_origins has that host. A page that brings a key was given it: browsers add none by
    themselves."""
    headers = Headers(scope=scope)
    if _gate.digests is None and not (same_origin(headers) or may_ask(headers["origin"])):
        raise APIError(403, "a page of another host", code="foreign_origin")


class GateMiddleware:
    """Refuses with 401, 408, 413 and 503, and a WebSocket with close code 1008."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            check_key(scope)
            check_origin(scope)
        except APIError as error:
            refused(scope, error)
            await receive()
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": str(error)})
            return
        await self._app(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = _gate.limits.body(local_path(scope))
        try:
            check_key(scope)
            if declared(Headers(scope=scope)) > limit.size:
                raise too_large(limit)
        except APIError as error:
            refused(scope, error)
            await error_response(error)(scope, receive, send)
            return
        body = Body(receive, limit, _gate.bodies)
        try:
            await self._app(scope, body, send)
        finally:
            _gate.bodies.leave(body)
