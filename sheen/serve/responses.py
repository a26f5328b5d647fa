"""An utterance as an HTTP response: in its speed and format, streamed as audio or events, or whole.

Owns what is rendered beside the event loop and in which order (speed, then format), OpenAI's
events, when the response begins (with its first bytes, so that until then a failure still gets a
status of its own) and how it ends: a stream that fails is cut off, or says so in an event; it never
ends as if it were complete. What a format is and how speed changes: `sheen.audio.encoders`,
`sheen.audio.effects`.
"""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response, StreamingResponse

from sheen.audio.effects import Stretch
from sheen.audio.encoders import MEDIA_TYPES, AudioEncoder
from sheen.engine.chunks import ChunkStream
from sheen.engine.longform import Speech
from sheen.engine.types import EngineBusy, RequestError, Span, SpeechFailed
from sheen.serve.errors import APIError, unforeseen
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema import Usage
from sheen.serve.word_times import WordTime, WordTimes
from sheen.text.delivery import DeliveryStream
from sheen.text.items import DeliveryError
from sheen.text.ssml import Scope

CHEAP = {"pcm", "wav"}
"""Formats that cost less to make than to hand to another thread."""


class Renderer:
    """One response's bytes. `close` it, whatever happened."""

    def __init__(
        self,
        audio_format: str,
        speed: float,
        sample_rate: int,
        pool: ThreadPoolExecutor,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: all bytes leave at `finish`, with a header that states the length."""
        self.sample_rate = sample_rate
        self.whole = whole
        self._stretch = Stretch(speed, sample_rate)
        self._encoder = AudioEncoder(audio_format, sample_rate, whole=whole)
        self._pool = None if audio_format in CHEAP and speed == 1.0 else pool
        # A client may leave while another thread computes: what it uses is not closed under it.
        self._lock = threading.Lock()
        self._closed = False

    async def push(self, span: Span) -> bytes:
        """What can be sent of these samples and those before them."""
        return await self._computed(span)

    async def finish(self) -> bytes:
        """All that is left."""
        return await self._computed(None)

    def seconds(self, span: Span) -> float:
        """How long a listener hears these samples."""
        return self._stretch.seconds(len(span.samples), span.rate)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._encoder.close()

    async def _computed(self, span: Span | None) -> bytes:
        if self._pool is None:
            return self._compute(span)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._compute, span)

    def _compute(self, span: Span | None) -> bytes:
        with self._lock:
            if self._closed:
                return b""
            if span is not None:
                return self._encoder.push(self._stretch.push(span.samples, span.rate))
            last = self._encoder.push(self._stretch.finish())
            return last + self._encoder.finish()


@dataclass(frozen=True)
class Utterance:
    """An admitted request: give it its text, iterate `speech`, send what `renderer` makes of it."""

    chunks: ChunkStream
    text: DeliveryStream
    speech: Speech
    renderer: Renderer
    come_back: Callable[[], int]
    """A place promised for when it is asked for again: seconds until then."""
    ssml: Scope | None = None
    """Its text is one SSML document."""
    words: WordTimes | None = None
    """Where they were asked for."""

    async def feed(self, text: str, field: str = "input") -> None:
        """Further text, which came in a field of this name. Raises APIError, 400, for a mark in it
        that cannot be followed."""
        with _marks_of(field):
            if self.ssml is None:
                await self.chunks.feed_text(text, self.text)
            else:
                self.chunks.feed(self.text.document(text, self.ssml))

    def close(self, field: str = "input") -> None:
        """No more text will come. Raises APIError, see `feed`."""
        with _marks_of(field):
            self.chunks.close(self.text)


@contextmanager
def _marks_of(field: str) -> Iterator[None]:
    try:
        yield
    except DeliveryError as error:
        raise APIError(400, f"{field}: {error}", param=field, code="invalid_mark") from error


def delta_event(data: bytes) -> bytes:
    """Audio as one of OpenAI's server-sent events."""
    return event("speech.audio.delta", audio=base64.b64encode(data).decode())


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event of this type."""
    return f"data: {json.dumps({'type': kind, **fields})}\n\n".encode()


EVENT_STREAM = "text/event-stream"
FINISH_REASON = "X-Finish-Reason"
"""Header of a whole answer: how it ended. A stream's headers are sent before anybody knows."""
SAMPLE_RATE = "x-sample-rate"
IGNORED = "X-Sheen-Ignored"
WORDS, WORDS_OMITTED = "X-Word-Timestamps", "X-Word-Timestamps-Omitted"
MAX_WORDS_BYTES = 4096
SPEECH_HEADERS: dict[str, dict[str, Any]] = {
    SAMPLE_RATE: {"description": "Hz, of the audio", "schema": {"type": "integer"}},
    FINISH_REASON: {
        "description": "with `stream: false`. stop: the model ended every chunk; length: a chunk "
        "met its budget",
        "schema": {"enum": ["stop", "length"]},
    },
    IGNORED: {
        "description": "fields of the request that the model cannot follow, with commas between",
        "schema": {"type": "string"},
    },
    WORDS: {
        "description": "of a whole answer, with `word_timestamps`: JSON, a list of `word`, "
        "`start_ms` and `end_ms`",
        "schema": {"type": "string"},
    },
    WORDS_OMITTED: {
        "description": "why that header is not there",
        "schema": {"type": "string"},
    },
}
"""As OpenAPI documents them."""


async def rendered(utterance: Utterance, record: RequestRecord) -> AsyncIterator[bytes]:
    """The audio's bytes as they are made, at least one. APIError for what can be foreseen."""
    try:
        async for data in _made(utterance, record):
            yield data
    except RequestError as error:
        raise APIError(400, str(error), param=error.field) from error
    except EngineBusy as busy:
        raise APIError(429, str(busy), code="rate_limit_exceeded", retry_after_s=1) from busy
    except SpeechFailed as failure:
        raise APIError(500, str(failure)) from failure


async def _made(utterance: Utterance, record: RequestRecord) -> AsyncIterator[bytes]:
    renderer, sent = utterance.renderer, False
    try:
        async for span in utterance.speech.spans():
            data = await renderer.push(span)
            record.sent(renderer.seconds(span))
            if utterance.words is not None:
                utterance.words.push(span, renderer.seconds(span), utterance.speech.texts)
            if data or renderer.whole:  # of a whole file nothing leaves, but it has begun
                sent = True
                yield data
        if data := await renderer.finish():
            sent = True
            yield data
        if not sent:
            raise SpeechFailed("synthesis failed: the model gave no audio")
    except Exception:
        if record.chunks:  # else nothing was begun that could fail
            record.finish_reason = "error"
        raise


async def told(
    data: AsyncIterator[bytes], utterance: Utterance
) -> AsyncIterator[bytes | list[WordTime] | None]:
    """What `rendered` gives, and between it the times of the words of a chunk, as soon as they are
    known; None for a chunk that has none."""
    async for some in data:
        yield some
        for words in [] if utterance.words is None else utterance.words.ready():
            yield words
    if utterance.words is not None:
        async for words in utterance.words.rest():
            yield words


WORD_EVENT = "speech.audio.word_timestamps"


def finish_reason(record: RequestRecord) -> str:
    """Of speech that is whole: `length` if a chunk of it met its budget. What is said of a text
    without a word is `stop`."""
    return record.finish_reason or "stop"


def usage(record: RequestRecord) -> Usage:
    total = record.input_tokens + record.output_tokens
    return Usage(
        input_tokens=record.input_tokens, output_tokens=record.output_tokens, total_tokens=total
    )


def ending(record: RequestRecord) -> dict[str, Any]:
    """What the last event of whole speech tells."""
    ignored = {"ignored": list(record.ignored)} if record.ignored else {}
    usage_of = usage(record).model_dump()
    return {"finish_reason": finish_reason(record), "usage": usage_of, **ignored}


async def streamed(
    utterance: Utterance, record: RequestRecord, timeout_s: float, events: bool
) -> StreamingResponse:
    """The answer, begun. Raises APIError when it cannot begin, with 503 after `timeout_s`."""
    chunks = rendered(utterance, record)
    first = await _first(chunks, utterance, record, timeout_s)
    rest = _events(first, told(chunks, utterance), record) if events else _audio(first, chunks)
    media = EVENT_STREAM if events else MEDIA_TYPES[record.audio_format]
    return StreamingResponse(rest, media_type=media, headers=_headers(utterance, record))


async def whole(utterance: Utterance, record: RequestRecord, timeout_s: float) -> Response:
    """The answer when all of it is there, with its length. Raises APIError."""
    chunks = rendered(utterance, record)
    body = bytearray(await _first(chunks, utterance, record, timeout_s))
    async for chunk in chunks:
        body += chunk
    media = MEDIA_TYPES[record.audio_format]
    headers = {**_headers(utterance, record), FINISH_REASON: finish_reason(record)}
    if utterance.words is not None:
        headers |= _word_headers(await utterance.words.all())
    return Response(bytes(body), media_type=media, headers=headers)


def _headers(utterance: Utterance, record: RequestRecord) -> dict[str, str]:
    headers = {
        SAMPLE_RATE: str(utterance.renderer.sample_rate),
        "Cache-Control": "no-store",
        # nginx would otherwise collect the stream before it passes it on.
        "X-Accel-Buffering": "no",
    }
    if record.ignored:
        headers[IGNORED] = ", ".join(record.ignored)
    return headers


def _word_headers(words: list[WordTime] | None) -> dict[str, str]:
    """As vLLM-Omni has them. Proxies bound headers, many to 8 KiB together."""
    if words is None:
        return {WORDS_OMITTED: "alignment failed"}
    written = json.dumps(words, separators=(",", ":"))
    if len(written) > MAX_WORDS_BYTES:
        return {WORDS_OMITTED: f"{len(written)} bytes; stream_format sse has them as events"}
    return {WORDS: written}


async def _first(
    chunks: AsyncIterator[bytes], utterance: Utterance, record: RequestRecord, timeout_s: float
) -> bytes:
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(chunks)
    except TimeoutError as error:
        record.finish_reason = "error"
        raise APIError(
            503,
            f"the audio had not begun after {timeout_s:g} s",
            code="timeout",
            retry_after_s=utterance.come_back(),
        ) from error


async def _audio(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    # An error here cuts the stream off: the status is long sent, and nothing else tells a client.
    async for chunk in chunks:
        yield chunk


async def _events(
    first: bytes,
    chunks: AsyncIterator[bytes | list[WordTime] | None],
    record: RequestRecord,
) -> AsyncIterator[bytes]:
    yield delta_event(first)
    try:
        async for chunk in chunks:
            if isinstance(chunk, bytes):
                yield delta_event(chunk)
            else:
                yield event(WORD_EVENT, word_timestamps=chunk)
    except Exception as error:
        known = error if isinstance(error, APIError) else unforeseen(error)
        yield event("speech.audio.error", **known.body())
        raise  # some clients know no error event: they must see the answer cut off
    yield event("speech.audio.done", **ending(record))
