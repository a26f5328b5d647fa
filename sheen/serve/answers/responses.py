"""An utterance as an HTTP response: streamed as audio or events, or whole.

Owns OpenAI's events and our headers, when the response begins (with its first bytes, so that until
then a failure still gets a status of its own) and how it ends: a stream that fails is cut off, or
ends with an error event; it never ends as if it were complete.
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fastapi.responses import Response, StreamingResponse

from sheen.audio.encoders import MEDIA_TYPES
from sheen.serve.errors import APIError, unforeseen
from sheen.serve.rendering import (
    WORD_EVENT,
    Utterance,
    ending,
    finish_reason,
    rendered,
    with_word_times,
)
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.word_times import WordTime

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.backend import Backend

EVENT_STREAM = "text/event-stream"
FINISH_REASON = "X-Finish-Reason"
"""Header with the finish reason of a whole answer. A stream's headers are sent before it is
known."""
SAMPLE_RATE = "x-sample-rate"
IGNORED = "X-Sheen-Ignored"
WORDS, WORDS_OMITTED = "X-Word-Timestamps", "X-Word-Timestamps-Omitted"
MAX_WORDS_BYTES = 4096
REFERENCE_RETRY_S = 5
"""Retry-After for a reference that was not ready in time."""
SPEECH_HEADERS: dict[str, dict[str, Any]] = {
    SAMPLE_RATE: {"description": "Hz, of the audio", "schema": {"type": "integer"}},
    FINISH_REASON: {
        "description": "with `stream: false`. stop: the model ended every chunk; length: a chunk "
        "reached its budget",
        "schema": {"enum": ["stop", "length"]},
    },
    IGNORED: {
        "description": "fields of the request that the model cannot follow, comma-separated",
        "schema": {"type": "string"},
    },
    WORDS: {
        "description": "of a whole answer, with `word_timestamps`: JSON, a list of `word`, "
        "`start_ms` and `end_ms`",
        "schema": {"type": "string"},
    },
    WORDS_OMITTED: {
        "description": "the reason why X-Word-Timestamps is missing",
        "schema": {"type": "string"},
    },
}
"""The headers of speech, for OpenAPI."""


async def answer(
    backend: "Backend", request: SpeechRequest, record: RequestRecord, timeout_s: float
) -> Response:
    """The response to a request, whole or streamed, as it asks. Raises APIError."""
    events = request.stream_format == "sse"
    if request.word_timestamps and not (events or request.whole):
        raise APIError(
            400,
            "word_timestamps: a stream of audio has no place for them; send stream_format sse, or "
            "stream false",
            param="word_timestamps",
        )
    begin_by = asyncio.get_running_loop().time() + timeout_s
    with _timed(record, lambda: REFERENCE_RETRY_S):
        async with asyncio.timeout_at(begin_by):
            reference = await backend.reference(request)
    utterance = backend.begin(request, record, reference, whole=request.whole)
    await utterance.feed(request.input)
    utterance.close()
    record.ignored += tuple(sorted(utterance.text.ignored))
    left_s = begin_by - asyncio.get_running_loop().time()
    if request.whole:
        return await whole(utterance, record, left_s)
    return await streamed(utterance, record, left_s, events)


def delta_event(data: bytes) -> bytes:
    """Audio as one of OpenAI's server-sent events."""
    return event("speech.audio.delta", audio=base64.b64encode(data).decode())


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event of this type."""
    return f"data: {json.dumps({'type': kind, **fields})}\n\n".encode()


async def streamed(
    utterance: Utterance, record: RequestRecord, timeout_s: float, events: bool
) -> StreamingResponse:
    """A streamed response, once it has its first bytes. Raises APIError when it cannot begin, with
    503 after `timeout_s`."""
    chunks = rendered(utterance, record)
    first = await _first(chunks, utterance, record, timeout_s)
    if events:
        rest = _events(first, with_word_times(chunks, utterance), record)
    else:
        rest = _audio(first, chunks)
    media = EVENT_STREAM if events else MEDIA_TYPES[record.audio_format]
    return StreamingResponse(rest, media_type=media, headers=_headers(utterance, record))


async def whole(utterance: Utterance, record: RequestRecord, timeout_s: float) -> Response:
    """The complete response, with its length. Raises APIError."""
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
        # nginx would otherwise buffer the stream.
        "X-Accel-Buffering": "no",
    }
    if record.ignored:
        headers[IGNORED] = ", ".join(record.ignored)
    return headers


def _word_headers(words: list[WordTime] | None) -> dict[str, str]:
    """The word times in a header, as in vLLM-Omni. Limited in size, because proxies limit headers,
    many to 8 KiB together."""
    if words is None:
        return {WORDS_OMITTED: "alignment failed"}
    written = json.dumps(words, separators=(",", ":"))
    if len(written) > MAX_WORDS_BYTES:
        return {WORDS_OMITTED: f"{len(written)} bytes; stream_format sse has them as events"}
    return {WORDS: written}


async def _first(
    chunks: AsyncIterator[bytes], utterance: Utterance, record: RequestRecord, timeout_s: float
) -> bytes:
    with _timed(record, utterance.come_back):
        async with asyncio.timeout(timeout_s):
            return await anext(chunks)


@contextmanager
def _timed(record: RequestRecord, come_back: Callable[[], int]) -> Iterator[None]:
    """Turn a timeout before the first audio into 503; `come_back`: seconds until a retry."""
    try:
        yield
    except TimeoutError as error:
        if record.chunks:
            record.finish_reason = "error"
        waited_s = time.monotonic() - record.playback.opened
        raise APIError(
            503,
            f"the audio had not begun after {waited_s:.1f} s",
            code="timeout",
            retry_after_s=come_back(),
        ) from error


async def _audio(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    # An error here cuts the stream off: the status is sent, and only that shows it to a client.
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
        raise  # for clients without error events: they see the response cut off
    yield event("speech.audio.done", **ending(record))
