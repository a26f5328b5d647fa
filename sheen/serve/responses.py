"""An utterance as an HTTP response: streamed as audio or as events, or whole.

Owns when the response begins (with its first bytes, so that until then a failure still gets a
status of its own) and how it ends: a stream that fails is cut off, or says so in an event; it never
ends as if it were complete.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi.responses import Response, StreamingResponse

from sheen.audio.encoders import MEDIA_TYPES
from sheen.engine.types import EngineBusy, SpeechFailed
from sheen.engine.voice import RequestError
from sheen.serve.backend import Backend, Utterance
from sheen.serve.errors import APIError, unforeseen
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema import SpeechRequest, Usage
from sheen.serve.speech import delta_event, event
from sheen.text.segmentation import SentenceStream

EVENT_STREAM = "text/event-stream"


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
        async for samples in utterance.speech.samples():
            data = await renderer.push(samples)
            record.sent(renderer.seconds(samples))
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


def usage(record: RequestRecord) -> Usage:
    total = record.input_tokens + record.output_tokens
    return Usage(
        input_tokens=record.input_tokens, output_tokens=record.output_tokens, total_tokens=total
    )


async def answer(
    backend: Backend, request: SpeechRequest, record: RequestRecord, timeout_s: float
) -> Response:
    """The answer to a request as it asks for it: whole, or begun. Raises APIError."""
    events = request.stream_format == "sse"
    at_once = not request.stream and not events
    utterance = backend.begin(request, record, whole=at_once)
    sentences = SentenceStream(backend.voice.language)
    await utterance.chunks.feed_text(request.input, sentences)
    utterance.chunks.close(sentences)
    if at_once:
        return await whole(utterance, record, timeout_s)
    return await streamed(utterance, record, timeout_s, events)


async def streamed(
    utterance: Utterance, record: RequestRecord, timeout_s: float, events: bool
) -> StreamingResponse:
    """The answer, begun. Raises APIError when it cannot begin, with 503 after `timeout_s`."""
    chunks = rendered(utterance, record)
    first = await _first(chunks, utterance, record, timeout_s)
    rest = _events(first, chunks, record) if events else _audio(first, chunks)
    media = EVENT_STREAM if events else MEDIA_TYPES[record.audio_format]
    return StreamingResponse(rest, media_type=media, headers=_headers(utterance))


async def whole(utterance: Utterance, record: RequestRecord, timeout_s: float) -> Response:
    """The answer when all of it is there, with its length. Raises APIError."""
    chunks = rendered(utterance, record)
    body = bytearray(await _first(chunks, utterance, record, timeout_s))
    async for chunk in chunks:
        body += chunk
    media = MEDIA_TYPES[record.audio_format]
    return Response(bytes(body), media_type=media, headers=_headers(utterance))


def _headers(utterance: Utterance) -> dict[str, str]:
    return {
        "x-sample-rate": str(utterance.renderer.sample_rate),
        "Cache-Control": "no-store",
        # nginx would otherwise collect the stream before it passes it on.
        "X-Accel-Buffering": "no",
    }


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
    first: bytes, chunks: AsyncIterator[bytes], record: RequestRecord
) -> AsyncIterator[bytes]:
    yield delta_event(first)
    try:
        async for chunk in chunks:
            yield delta_event(chunk)
    except Exception as error:
        known = error if isinstance(error, APIError) else unforeseen(error)
        yield event("speech.audio.error", **known.body())
        raise  # some clients know no error event: they must see the answer cut off
    yield event("speech.audio.done", usage=usage(record).model_dump())
