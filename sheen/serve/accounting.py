"""One entry per request: what was asked, what became of it, and what must be given back at the end.

Owns the entry's life, as ASGI middleware around the whole application: when the answer is out, or
its client has left in any way, what the request held is released, and the entry is counted and
logged. Knows nothing about speech but its figures.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sheen.core.playback import Playback
from sheen.serve.errors import ERROR_KEY, APIError, remember, unforeseen

SCOPE_KEY = "sheen.entry"
CLIENT_LEFT = 499
"""nginx's status for an answer that nobody waited for."""
FAILED = 500
LONGEST_ID = 128


@dataclass
class Entry:
    """A request on its way. `status` None: no answer has begun."""

    path: str
    request_id: str
    status: int | None = None
    code: str | None = None
    """Of the error that it was refused or failed with; `param`: the field that it names."""
    param: str | None = None
    characters: int = 0
    voice: str = ""
    audio_format: str = ""
    ending: str = ""
    """`stop`, `length`, `cancelled`, `error`; empty where nothing was spoken."""
    pieces: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None
    playback: Playback = field(default_factory=Playback)
    """As the audio left the server; `Playback.opened` is the request's arrival."""
    held: ExitStack = field(default_factory=ExitStack)
    """What is given back when the request is over."""
    _first_chunk_s: float = 0.0
    _last_came: float = 0.0

    def blame(self, error: APIError) -> None:
        """Enter what it was refused or failed with."""
        self.code = error.code or HTTPStatus(error.status).name.lower()
        self.param = error.param

    def sent(self, seconds: float) -> None:
        """So many seconds of audio leave now."""
        if self.playback.first_audio_s is None:
            self._first_chunk_s = seconds
        self.playback.came(seconds)
        self._last_came = time.monotonic() - self.playback.opened

    @property
    def realtime_factor(self) -> float | None:
        """Seconds from the first to the last audio, per second of audio after the first chunk."""
        later = self.playback.seconds - self._first_chunk_s
        if self.playback.first_audio_s is None or later <= 0:
            return None
        return (self._last_came - self.playback.first_audio_s) / later

    def fields(self) -> dict[str, Any]:
        """As the log line holds it: seconds, rounded to milliseconds."""
        numbers = {
            "queue_s": self.queue_s,
            "first_audio_s": self.playback.first_audio_s,
            "audio_s": self.playback.seconds,
            "took_s": time.monotonic() - self.playback.opened,
            "realtime_factor": self.realtime_factor,
        }
        return {
            "id": self.request_id,
            "path": self.path,
            "status": self.status,
            "code": self.code,
            "param": self.param,
            "ending": self.ending or None,
            "characters": self.characters,
            "voice": self.voice,
            "format": self.audio_format,
            "pieces": self.pieces,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "underruns": self.playback.underruns,
            **{name: None if n is None else round(n, 3) for name, n in numbers.items()},
        }


_listeners: list[Callable[[Entry], object]] = []


def listen(ended: Callable[[Entry], object]) -> None:
    """Tell `ended` of every entry's end. The process's, like the gate (`sheen.serve.access`)."""
    _listeners.append(ended)


def local_path(scope: Scope) -> str:
    """The path within the application: its route prefix is in `root_path`, and in `path` too."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def open_entry(scope: Scope) -> Entry:
    """A new entry for a request, or for an utterance on a WebSocket.

    Serve's proxy gives every request an id, the client's own if it brings one, and puts it into the
    answer's headers.
    """
    request_id = Headers(scope=scope).get("x-request-id", "")[:LONGEST_ID]
    return Entry(local_path(scope), request_id)


def close_entry(entry: Entry) -> None:
    """Give back what it holds; count it."""
    entry.held.close()
    for ended in _listeners:
        ended(entry)


def entry_of(request: HTTPConnection) -> Entry:
    """The entry that the middleware opened for a request."""
    entry: Entry = request.scope[SCOPE_KEY]
    return entry


def refused(scope: Scope, error: APIError) -> None:
    """Enter why a request is refused; what a WebSocket is refused has an entry of its own."""
    remember(scope, error)
    if SCOPE_KEY not in scope:
        entry = open_entry(scope)
        entry.status = error.status
        entry.blame(error)
        close_entry(entry)


class AccountingMiddleware:
    """Opens an entry for every request and closes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a WebSocket has an entry for each of its utterances
            await self._app(scope, receive, send)
            return
        entry = scope[SCOPE_KEY] = open_entry(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            entry.status = entry.status or CLIENT_LEFT
            raise
        except Exception as failure:
            entry.status = entry.status or FAILED
            entry.blame(unforeseen(failure))
            raise
        finally:
            if error := scope.get(ERROR_KEY):
                entry.blame(error)
            close_entry(entry)
