"""Long-form synthesis: a text of any length -> one asynchronous stream of samples.

Owns the only path from text to audio, for the server, the Python API, the command line and
evaluation. Sentences are normalized and packed into chunks, and their samples joined, by `chunks`;
each chunk is a request to the engine, submitted when the one before it returns its first audio. The
same text, parameters and seed give the same samples in all of them. For callers without an event
loop see `sheen.engine.synthesis`. Knows nothing about HTTP or audio formats.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from sheen.audio.samples import Samples
from sheen.engine.chunks import (
    WORD_PAUSE_S,
    ChunkStream,
    Joiner,
    Normalize,
    pause_after,
    silence,
    wordless,
)
from sheen.engine.engine import Engine
from sheen.engine.scheduler import Ticket
from sheen.engine.types import (
    Finished,
    Progress,
    RequestError,
    Span,
    SpeechFailed,
    SynthesisParams,
)
from sheen.engine.voice import Voice
from sheen.text.delivery import deliver
from sheen.text.items import DeliveryError, Pause, Style


class Chunk:
    """The request of one chunk, with an asynchronous queue of its samples and its end."""

    def __init__(
        self,
        text: str,
        engine: Engine,
        voice: Voice,
        params: SynthesisParams,
        before: "Chunk | None",
        style: Style | None = None,
    ) -> None:
        """Raises RequestError, EngineBusy, and RuntimeError when the engine has ended."""
        self.text = text
        self.rate = 1.0 if style is None else style.rate
        self._items: asyncio.Queue[Samples | Finished] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(item: Samples | Finished) -> None:
            with suppress(RuntimeError):  # the loop is closed: the request was cancelled
                loop.call_soon_threadsafe(self._items.put_nowait, item)

        speaker = params.speaker if style is None else style.speaker
        # The reference applies to the request's voice, not to others in an SSML document.
        reference = params.reference if speaker == params.speaker else None
        self.audio_tokens = 0 if reference is None else reference.frames.size
        """Tokens of the prompt that are the reference's codes."""
        self.request = voice.request(
            text,
            speaker,
            params.sampling,
            params.chunk_seconds,
            engine.max_seq_len,
            reference,
            params.instruction,
        )
        follows = None if before is None else before.ticket
        self.ticket: Ticket = engine.submit(self.request, sink, follows)

    async def next(self) -> Samples | Finished:
        return await self._items.get()


class Speech:
    """The synthesis of one text, with statistics in `progress`. Iterate `spans` once."""

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        params: SynthesisParams,
        chunks: ChunkStream,
        progress: Progress,
    ) -> None:
        self._engine, self._voice, self._params = engine, voice, params
        self._chunks = chunks
        self.progress = progress
        self.texts: list[str] = []
        """Input texts of the chunks whose audio has begun."""
        self._joiner = Joiner(voice.codec.sample_rate)
        self._tickets: set[Ticket] = set()
        self._coming: asyncio.Task[Chunk | None] | None = None
        self._pauses: deque[Pause] = deque()  # before the next chunk
        self._over = False

    async def spans(self) -> AsyncIterator[Span]:
        """The stream of samples; silence for a text without a word. Raises RequestError and
        EngineBusy before any samples except those of a pause, and SpeechFailed."""
        chunk = await self._open(None)
        sample_rate = self._voice.codec.sample_rate
        if chunk is None and not any(round(p.seconds * sample_rate) for p in self._pauses):
            yield Span(wordless(sample_rate))
        for span in self._paused():
            yield span
        while chunk is not None:
            pause_s = WORD_PAUSE_S if self._chunks.pauses else pause_after(chunk.text)
            self._joiner.begin(pause_s, self._chunks.last)
            self.texts.append(chunk.text)
            while not isinstance(item := await chunk.next(), Finished):
                if self._coming is None:
                    self._coming = asyncio.create_task(self._open(chunk))
                if len(samples := self._joiner.push(item)):
                    yield Span(samples, chunk.rate)
            self._close(chunk, item)
            pauses = bool(self._pauses) or self._chunks.pauses
            if len(samples := self._joiner.end(pad=not pauses)):
                yield Span(samples, chunk.rate)
            for span in self._paused():
                yield span
            chunk = await (self._coming or self._open(chunk))
            self._coming = None
            for span in self._paused():
                yield span
        self._over = True

    def _paused(self) -> Iterator[Span]:
        """The pauses that are due."""
        while self._pauses:
            pause = self._pauses.popleft()
            for samples in silence(pause.seconds, self._voice.codec.sample_rate):
                yield Span(samples, rate=None)

    async def _open(self, before: Chunk | None) -> Chunk | None:
        """Submit the next chunk, if there is one; pauses before it are queued for the stream."""
        while isinstance(text := await self._chunks.next(), Pause):
            self._pauses.append(text)
        if text is None:
            return None
        style = self._chunks.style
        chunk = Chunk(text, self._engine, self._voice, self._params, before, style)
        self._tickets.add(chunk.ticket)
        self.progress.chunks += 1
        self.progress.input_tokens += len(chunk.request.prompt)
        self.progress.input_audio_tokens += chunk.audio_tokens
        return chunk

    def _close(self, chunk: Chunk, finished: Finished) -> None:
        self._tickets.discard(chunk.ticket)
        progress, layout = self.progress, self._voice.model.layout
        progress.output_tokens += finished.frames * layout.tokens_per_frame
        if progress.queue_s is None:
            progress.queue_s = chunk.ticket.waited_s
        if finished.reason == "error":
            progress.finish_reason = "error"
            raise SpeechFailed(f"synthesis failed: {finished.error}")
        if progress.finish_reason != "length":
            progress.finish_reason = finished.reason

    def close(self) -> None:
        """Cancel unfinished chunks and release their slots. No effect after the end."""
        for ticket in self._tickets:
            ticket.cancel()
        if self._coming is not None and not self._coming.cancel() and not self._coming.cancelled():
            self._coming.exception()  # retrieved, so that asyncio does not log it
        if not self._over and self.progress.chunks and self.progress.finish_reason != "error":
            self.progress.finish_reason = "cancelled"


def open_speech(
    engine: Engine, voice: Voice, text: str, params: SynthesisParams, normalize: Normalize
) -> Speech:
    """The synthesis of a complete text. Raises RequestError, see `Voice.check`."""
    voice.check(text, params.speaker, params.reference, params.instruction)
    try:
        items = deliver(text, voice.language, params.delivery, params.ssml)
    except DeliveryError as error:
        raise RequestError("input", str(error)) from error
    others = {item.speaker for item in items if isinstance(item, Style)}
    limit = voice.longest_chunk(params.chunk_seconds, params.speaker, params.reference, others)
    chunks = ChunkStream(normalize, limit)
    chunks.feed(items)
    chunks.close()
    return Speech(engine, voice, params, chunks, Progress())


def inline(normalize: Callable[[str], str]) -> Normalize:
    """A synchronous function as a `Normalize`; it runs in the event loop's thread."""

    async def normalize_here(sentence: str) -> str:
        return normalize(sentence)

    return normalize_here
