"""Who may ask, and how much at a time: bearer keys, the body's limit, where a WebSocket comes from.

Owns the gate before the application, as ASGI middleware: what it refuses no handler sees. Keys are
kept and compared as hashes, in constant time; none is ever logged. One process has one gate,
because the application is made when the module is imported, and its settings are known later.
"""

import hashlib
import hmac
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sheen.serve.errors import APIError, error_response

KEYS_VARIABLE = "SHEEN_API_KEYS"
PROTECTED = "/v1/"
"""Paths that need a key. The rest (health, the page, the documentation) says nothing of a model."""
MAX_BODY_BYTES = 256 * 1024
"""The longest text and instructions, with every character escaped, take 100 kB."""
POLICY_VIOLATION = 1008
"""A WebSocket's close code (RFC 6455, 7.4.1)."""


@dataclass
class Gate:
    """The process's settings. `digests` None: no key is needed; until it is set, none opens."""

    digests: frozenset[str] | None = frozenset()
    max_body_bytes: int = MAX_BODY_BYTES


_gate = Gate()


def set_gate(gate: Gate) -> None:
    """Serve pickles the application with what it names: it can call this, and not set a name."""
    global _gate
    _gate = gate


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | None) -> frozenset[str]:
    """Hashes of the keys in a file (one a line; what begins with `#` is a comment, at the beginning
    of a line or after white space) or in SHEEN_API_KEYS (commas between them).

    ValueError when there are none, because a server without keys must be asked for, and for a key
    that no header can carry.
    """
    if path is not None:
        where = f"args.keys_file {path}"
        try:
            lines = Path(path).expanduser().read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{where}: {error}") from error
        keys = [re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip() for line in lines]
    else:
        where = f"the environment variable {KEYS_VARIABLE}"
        keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",")]
    keys = [key for key in keys if key]
    if not keys:
        raise ValueError(
            f"{where} holds no key. Put one into it (`openssl rand -hex 32` makes one), or set "
            "args.auth to none to let everybody in who reaches the port"
        )
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"{where}: a key may hold printable ASCII without spaces only")
    return frozenset(digest(key) for key in keys)


def allowed(headers: Headers, digests: Iterable[str]) -> bool:
    """Whether a request brings one of the keys."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        return False
    found = digest(key.strip())
    # All are compared: how long it takes says nothing about which one was near.
    return sum(hmac.compare_digest(found, known) for known in digests) > 0


def same_origin(headers: Headers) -> bool:
    """Whether a WebSocket comes from no web page, or from one of this host: browsers let any page
    open one anywhere."""
    origin = headers.get("origin")
    try:
        return origin is None or urlsplit(origin).netloc == headers.get("host")
    except ValueError:  # no address
        return False


def local_path(scope: Scope) -> str:
    """The path within the application: its route prefix is in `root_path`, and in `path` too."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class GateMiddleware:
    """Refuses with 401 and 413, and a WebSocket with close code 1008."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if refusal is None and not same_origin(headers):
                refusal = APIError(403, "a page of another host")
            if refusal is not None:
                await receive()
                await send(
                    {"type": "websocket.close", "code": POLICY_VIOLATION, "reason": str(refusal)}
                )
                return
            await self._app(scope, receive, send)
            return
        if refusal is not None:
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, _limited(receive), send)

    def _refusal(self, scope: Scope, headers: Headers) -> APIError | None:
        protected = f"{local_path(scope)}/".startswith(PROTECTED)
        if protected and _gate.digests is not None and not allowed(headers, _gate.digests):
            return APIError(
                401,
                "no valid API key; send the header Authorization: Bearer KEY",
                code="invalid_api_key",
            )
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > _gate.max_body_bytes:
            return APIError(413, _too_large())
        return None


def _too_large() -> str:
    return f"the body has more than {_gate.max_body_bytes} bytes"


def _limited(receive: Receive) -> Receive:
    """`receive`, but a body that was sent in chunks without a length ends at the limit too."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > _gate.max_body_bytes:
                # The framework makes a 400 of everything else that happens while it reads.
                raise HTTPException(413, _too_large())
        return message

    return limited
