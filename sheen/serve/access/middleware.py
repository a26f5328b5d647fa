"""Middleware in front of the application: HEAD, slashes and CORS, then the gate.

Owns both as ASGI middleware. The front does what is expected of any web server: HEAD wherever there
is GET, redirects of paths with a trailing slash, and CORS for the origins that the operator names.
The gate checks who may enter (bearer keys, and the origin of a WebSocket) and limits bodies; what
it refuses reaches no handler. Keys: `keys`; limits: `limits`. There is one of each per process,
because the application is made when the module is imported, and its settings are known later.
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
from sheen.serve.config import MAX_BODIES, ClientLimits
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
"""Response headers that a page of another origin may read."""

_origins: tuple[str, ...] = ()


def set_origins(origins: tuple[str, ...]) -> None:
    """Allow pages of these origins, all for `*`, besides the server's own pages."""
    global _origins
    _origins = origins


def may_ask(origin: str) -> bool:
    """Whether pages of another origin may use the server."""
    return "*" in _origins or origin in _origins


class FrontMiddleware:
    """HEAD, slashes and CORS. WebSockets pass through: the gate checks their origin with
    `may_ask`."""

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
            # Relative: the server does not know how a proxy in front of it changes its address.
            answer = Response(status_code=307, headers={"Location": location})
            await answer(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope["method"], send = "GET", _headers_of(send)
        await self._app(scope, receive, send)


def _without_slash(scope: Scope) -> str | None:
    """Relative redirect for a path with a trailing slash; None for any other path."""
    last = local_path(scope)[:-1].rpartition("/")[2]
    if not last or not scope["path"].endswith("/"):
        return None
    query = scope["query_string"].decode("latin-1")
    return f"../{quote(last)}" + (f"?{query}" if query else "")


def _headers_of(send: Send) -> Send:
    """A `send` that sends the response without its body."""

    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if "body" in message else message)

    return sent


PROTECTED = "/v1/"
"""Prefix of paths that need a key. The rest (health, the page, the documentation) reveals nothing
of a model."""
KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of a key among the subprotocols of a WebSocket, the only place where a browser lets a page
put one; OpenAI's own endpoints accept it there. A query would not do, since proxies log it."""
RETRY_S = 5

Digests = frozenset[str]


def no_digests() -> Digests:
    return frozenset()


@dataclass
class Gate:
    """The process's settings. `digests` returns the hashes of the valid keys, or None while they
    are unknown; it is None itself where no key is needed. Until the gate is set, it admits
    nobody."""

    digests: Callable[[], Digests | None] | None = no_digests
    limits: ClientLimits = field(default_factory=ClientLimits)

    def __post_init__(self) -> None:
        self.bodies = Bodies(MAX_BODIES)


_gate = Gate()


def set_gate(gate: Gate) -> None:
    """Set the process's gate. A function, because Serve pickles the application with the names it
    uses: its copy can call this, but cannot assign a variable of this module."""
    global _gate
    _gate = gate


def check_key(scope: Scope) -> None:
    """Raise APIError unless a request, or an open WebSocket, has a key that is valid now."""
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
    """The possible keys in a request's headers."""
    kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        yield key.strip()
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            yield protocol.removeprefix(KEY_PROTOCOL)


def answered_protocol(scope: Scope) -> str | None:
    """The subprotocol to accept a WebSocket with: the first offered one that is not a key. Browsers
    close a WebSocket if none of their offers is accepted."""
    offered: list[str] = scope.get("subprotocols", [])
    return next((name for name in offered if not name.startswith(KEY_PROTOCOL)), None)


def same_origin(headers: Headers) -> bool:
    """Whether a WebSocket comes from no web page, or from one of this host: browsers let any page
    open one to any host."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # not a URL
        return False


def check_origin(scope: Scope) -> None:
    """Raise APIError for a WebSocket of another host's page where no key is needed, unless
    args.cors_origins has that host. Where keys are needed, the key suffices: browsers add none by
    themselves."""
    headers = Headers(scope=scope)
    if _gate.digests is None and not (same_origin(headers) or may_ask(headers["origin"])):
        raise APIError(403, "a page of another host", code="foreign_origin")


class GateMiddleware:
    """Refuses requests with 401, 408, 413 and 503, and WebSockets with close code 1008."""

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
