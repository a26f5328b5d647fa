"""Rendering of an admitted request: text in, bytes of audio out, at its speed, in its format.

Owns the rendering outside the event loop and its order (speed, then format), the failures that can
be foreseen, and the finish reason and usage of complete speech. Formats and changes of speed:
`sheen.audio.encoders`, `sheen.audio.effects`; how they are sent: `sheen.serve.answers.responses`,
`sheen.serve.websocket`.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sheen.audio.effects import Stretch
from sheen.audio.encoders import AudioEncoder
from sheen.engine.chunks import ChunkStream
from sheen.engine.types import EngineBusy, RequestError, Span, SpeechFailed
from sheen.serve.errors import APIError
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema.answers import InputTokens, Usage
from sheen.serve.word_times import WordTime, WordTimes
from sheen.text.delivery import DeliveryStream
from sheen.text.items import DeliveryError
from sheen.text.ssml import Scope

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.engine.longform import Speech

CHEAP = {"pcm", "wav"}
"""Formats that cost less to encode than to pass to another thread."""


class Renderer:
    """Encodes the audio of one response. Always `close` it."""

    def __init__(
        self,
        audio_format: str,
        speed: float,
        sample_rate: int,
        pool: ThreadPoolExecutor,
        *,
        whole: bool = False,
    ) -> None:
        """`whole`: `finish` returns all bytes, with a header that states the length."""
        self.sample_rate = sample_rate
        self.whole = whole
        self._stretch = Stretch(speed, sample_rate)
        self._encoder = AudioEncoder(audio_format, sample_rate, whole=whole)
        self._pool = None if audio_format in CHEAP and speed == 1.0 else pool
        # A client may disconnect while another thread encodes: the encoder must not be closed then.
        self._lock = threading.Lock()
        self._closed = False

    async def push(self, span: Span) -> bytes:
        """Add samples. Returns the bytes that can be sent now."""
        return await self._computed(span)

    async def finish(self) -> bytes:
        """Returns the remaining bytes."""
        return await self._computed(None)

    def seconds(self, span: Span) -> float:
        """Duration of these samples as sent, after the change of speed."""
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
    """An admitted request: feed it its text, iterate `speech`, send the bytes of `renderer`."""

    chunks: ChunkStream
    text: DeliveryStream
    speech: "Speech"
    renderer: Renderer
    come_back: Callable[[], int]
    """Promises a place to a retry of this request. Returns the seconds until then."""
    ssml: Scope | None = None
    """Set where the text is one SSML document."""
    words: WordTimes | None = None
    """Word times, where they were requested."""

    async def feed(self, text: str, field: str = "input") -> None:
        """Add text, which came in a field of this name. Raises APIError, 400, for a mark in it that
        cannot be followed."""
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


async def rendered(utterance: Utterance, record: RequestRecord) -> AsyncIterator[bytes]:
    """The audio's bytes as they are generated, at least one item. APIError for foreseeable
    failures."""
    try:
        async for data in _encoded(utterance, record):
            yield data
    except RequestError as error:
        raise APIError(400, str(error), param=error.field) from error
    except EngineBusy as busy:
        raise APIError(429, str(busy), code="rate_limit_exceeded", retry_after_s=1) from busy
    except SpeechFailed as failure:
        raise APIError(500, str(failure)) from failure


async def _encoded(utterance: Utterance, record: RequestRecord) -> AsyncIterator[bytes]:
    renderer, sent = utterance.renderer, False
    try:
        async for span in utterance.speech.spans():
            data = await renderer.push(span)
            record.sent(renderer.seconds(span))
            if utterance.words is not None:
                utterance.words.push(span, renderer.seconds(span), utterance.speech.texts)
            if data or renderer.whole:  # a whole file is sent at the end, but has begun
                sent = True
                yield data
        if data := await renderer.finish():
            sent = True
            yield data
        if not sent:
            raise SpeechFailed("synthesis failed: the model generated no audio")
    except Exception:
        if record.chunks:  # else nothing had started that could fail
            record.finish_reason = "error"
        raise


async def with_word_times(
    data: AsyncIterator[bytes], utterance: Utterance
) -> AsyncIterator[bytes | list[WordTime] | None]:
    """The bytes of `rendered` and, between them, the word times of each chunk as soon as they are
    known; None for a chunk whose alignment failed."""
    async for some in data:
        yield some
        for words in [] if utterance.words is None else utterance.words.ready():
            yield words
    if utterance.words is not None:
        async for words in utterance.words.rest():
            yield words


WORD_EVENT = "speech.audio.word_timestamps"


def finish_reason(record: RequestRecord) -> str:
    """The finish reason of complete speech: `length` if a chunk of it reached its budget, else
    `stop`, also for a text without a word."""
    return record.finish_reason or "stop"


def usage(record: RequestRecord) -> Usage:
    audio = record.input_audio_tokens
    return Usage(
        input_tokens=record.input_tokens,
        output_tokens=record.output_tokens,
        total_tokens=record.input_tokens + record.output_tokens,
        input_token_details=InputTokens(
            text_tokens=record.input_tokens - audio, audio_tokens=audio
        ),
    )


def ending(record: RequestRecord) -> dict[str, Any]:
    """The fields of the last event of complete speech."""
    ignored = {"ignored": list(record.ignored)} if record.ignored else {}
    usage_of = usage(record).model_dump()
    return {"finish_reason": finish_reason(record), "usage": usage_of, **ignored}
