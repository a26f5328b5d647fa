"""One record per request: its life cycle, its metrics and its log line.

Owns the record, as ASGI middleware around the whole application: when the response is sent, or the
client has disconnected in any way, the resources of the request are released, and the record is
counted and logged. Owns the metrics' names too; Ray's exporter puts `ray_` before each, `_total`
behind a counter's, and tags all with application, deployment and replica
(`deploy/grafana-dashboard.json` shows them). Neither metrics nor log lines hold a text or a key.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from ray.serve.metrics import Counter, Gauge, Histogram
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sheen.engine.types import Playback, Progress
from sheen.serve.errors import ERROR_KEY, APIError, remember, unforeseen

SCOPE_KEY = "sheen.record"
SWITCHED = 101
"""HTTP status of a WebSocket."""
CLIENT_LEFT = 499
"""nginx's status for a client that disconnected before the response."""
FAILED = 500
LONGEST_ID = 128


@dataclass
class RequestRecord(Progress):
    """A request in progress. `status` None: no response has begun."""

    path: str = ""
    request_id: str = ""
    status: int | None = None
    code: str | None = None
    """Code of the error that refused or failed the request; `param`: the field that it names."""
    param: str | None = None
    characters: int = 0
    voice: str = ""
    audio_format: str = ""
    ignored: tuple[str, ...] = ()
    """Fields of the request that the model cannot follow."""
    playback: Playback = field(default_factory=Playback)
    """Playback of the audio as it left the server; `Playback.opened` is the request's arrival."""
    cleanup: ExitStack = field(default_factory=ExitStack)
    """Releases the request's resources when it is over."""
    _first_chunk_s: float = 0.0
    _last_came: float = 0.0

    def blame(self, error: APIError) -> None:
        """Record the error that refused or failed the request."""
        self.code = error.code or HTTPStatus(error.status).name.lower()
        self.param = error.param

    def sent(self, seconds: float) -> None:
        """Record that so many seconds of audio are being sent now."""
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
        """Fields of the log line: times in seconds, rounded to milliseconds."""
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
            "finish_reason": self.finish_reason or None,
            "characters": self.characters,
            "voice": self.voice,
            "format": self.audio_format,
            "ignored": list(self.ignored),
            "chunks": self.chunks,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "underruns": self.playback.underruns,
            **{name: None if n is None else round(n, 3) for name, n in numbers.items()},
        }


_listeners: list[Callable[[RequestRecord], object]] = []


def listen(ended: Callable[[RequestRecord], object]) -> None:
    """Call `ended` with every record that ends in this process. Set per process, like the gate
    (`access.middleware`)."""
    _listeners.append(ended)


def local_path(scope: Scope) -> str:
    """The path within the application: its route prefix is in `root_path`, and in `path` too."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def open_record(scope: Scope) -> RequestRecord:
    """A new record for a request, or for an utterance on a WebSocket.

    Serve's proxy gives every request an id, the client's own if it brings one, and puts it into the
    response's headers.
    """
    request_id = Headers(scope=scope).get("x-request-id", "")[:LONGEST_ID]
    return RequestRecord(path=local_path(scope), request_id=request_id)


def close_record(record: RequestRecord) -> None:
    """Release the request's resources, and count it."""
    record.cleanup.close()
    for ended in _listeners:
        ended(record)


def record_of(request: HTTPConnection) -> RequestRecord:
    """The record that the middleware opened for a request."""
    record: RequestRecord = request.scope[SCOPE_KEY]
    return record


def refused(scope: Scope, error: APIError) -> None:
    """Record why a request is refused; a refusal on a WebSocket has a record of its own."""
    remember(scope, error)
    if SCOPE_KEY not in scope:
        record = open_record(scope)
        record.status = error.status
        record.blame(error)
        close_record(record)


class RequestLogMiddleware:
    """Opens a record for every request and closes it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a WebSocket has a record for each of its utterances
            await self._app(scope, receive, send)
            return
        record = scope[SCOPE_KEY] = open_record(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            record.status = record.status or CLIENT_LEFT
            raise
        except Exception as failure:
            record.status = record.status or FAILED
            record.blame(unforeseen(failure))
            raise
        finally:
            if error := scope.get(ERROR_KEY):
                record.blame(error)
            close_record(record)


logger = logging.getLogger(__name__)

SECONDS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0]
FACTORS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 5.0]

SPEECH = "/v1/audio/speech"
"""Requests for paths below this get a log line of their own; Serve's access log has the others."""


class Metrics:
    """A replica's metrics. Create it in the replica: Ray tags them by the process that creates
    them."""

    def __init__(self) -> None:
        self._requests = Counter(
            "sheen_requests",
            "Responses, by HTTP status and finish reason (stop, length, cancelled, error; none "
            "where nothing was synthesized).",
            tag_keys=("status", "finish_reason"),  # type: ignore[arg-type]  # Ray means any number
        )
        self._refusals = Counter(
            "sheen_refusals",
            "Refusals and failures, by the code of their error, on every way in.",
            tag_keys=("reason",),
        )
        self._tokens = Counter("sheen_tokens", "Audio tokens generated.")
        self._audio = Counter("sheen_audio_seconds", "Seconds of audio sent.")
        self._underruns = Counter(
            "sheen_underruns", "Chunks that came after a listener who plays at once had run out."
        )
        self._length_stops = Counter(
            "sheen_length_stops", "Speech ended by its budget, not by the model."
        )
        self._cancels = Counter("sheen_cancels", "Speech that its client cancelled, or left.")
        self._as_written = Counter(
            "sheen_texts_as_written",
            "Parts of texts that were spoken as written, because normalizing them took too long.",
        )
        self._ignored = Counter(
            "sheen_ignored_fields",
            "Requests with a field that the model cannot follow and that was ignored.",
            tag_keys=("field",),
        )
        self._running = Gauge("sheen_running_streams", "Text chunks being synthesized now.")
        self._waiting = Gauge("sheen_waiting_requests", "Text chunks waiting for a slot.")
        self._slots = Gauge("sheen_slots", "Text chunks that can be synthesized at once.")
        self._fill = Gauge("sheen_batch_fill", "Mean share of slots in a step since the start.")
        self._cache = Gauge(
            "sheen_kv_cache_fill", "Share of the KV cache that requests have reserved."
        )
        self._queue = Histogram("sheen_queue_seconds", "Seconds until a slot was free.", SECONDS)
        self._first = Histogram(
            "sheen_first_audio_seconds", "Seconds from the request to its first audio.", SECONDS
        )
        self._factor = Histogram(
            "sheen_realtime_factor",
            "Seconds from a request's first to its last audio, per second of audio after the first "
            "chunk; below 1 is faster than it is played.",
            FACTORS,
        )
        self._before = {"tokens": 0.0, "texts_as_written": 0.0}

    def engine(self, values: Mapping[str, float]) -> None:
        """Update the engine's metrics from `Backend.metrics`."""
        self._running.set(values["running"])
        self._waiting.set(values["waiting"])
        self._slots.set(values["slots"])
        self._fill.set(values["batch_fill"])
        self._cache.set(1 - values["pages_free"] / values["pages"])
        for name, counter in (("tokens", self._tokens), ("texts_as_written", self._as_written)):
            if more := values[name] - self._before[name]:
                counter.inc(more)
                self._before[name] = values[name]

    def refused_by_proxy(self, counts: Mapping[tuple[int, str], int]) -> None:
        """Count requests that Ray's proxy refused (`sheen.serve.proxy`), by the status and code of
        their error."""
        for (status, code), count in counts.items():
            self._requests.inc(count, {"status": str(status), "finish_reason": "none"})
            self._refusals.inc(count, {"reason": code})

    def ended(self, record: RequestRecord) -> None:
        """Count a request that was answered or whose client left, and log it if it was speech."""
        playback = record.playback
        self._requests.inc(
            1.0, {"status": str(record.status), "finish_reason": record.finish_reason or "none"}
        )
        if record.code is not None:
            self._refusals.inc(1.0, {"reason": record.code})
        for name in record.ignored:
            self._ignored.inc(1.0, {"field": name})
        if record.queue_s is not None:
            self._queue.observe(record.queue_s)
        if playback.seconds:
            self._audio.inc(playback.seconds)
        if playback.first_audio_s is not None:
            self._first.observe(playback.first_audio_s)
        if record.realtime_factor is not None:
            self._factor.observe(record.realtime_factor)
        if playback.underruns:
            self._underruns.inc(playback.underruns)
        if record.finish_reason == "length":
            self._length_stops.inc()
        if record.finish_reason == "cancelled":
            self._cancels.inc()
        if record.path.startswith(SPEECH):
            fields = record.fields()
            logger.info(
                "speech %s", fields["finish_reason"] or fields["status"], extra={"speech": fields}
            )
