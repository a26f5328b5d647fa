"""What the web expects of any server: HEAD wherever GET is, a path with a slash too many, and pages
of other origins, if the operator names them (CORS).

Owns these three, as ASGI middleware before the gate. Like the gate's, its setting is the process's.
"""

from urllib.parse import quote

from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sheen.serve.request_log import local_path

EXPOSED = ("Retry-After", "x-request-id", "x-sample-rate")
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
                    allow_methods=("GET", "HEAD", "POST"),
                    allow_headers=("*",),
                    expose_headers=EXPOSED,
                    allow_private_network=True,
                )
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
