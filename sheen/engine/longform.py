"""A request's text, sentence by sentence as it comes -> chunks that the model can speak.

Owns when a sentence is normalised and packed: not before its chunk is asked for, so that the first
chunk speaks while the last is still text. Knows nothing about audio.

Speaking: chunks of text -> one stream of samples, in order, each chunk made ahead of its turn.

Owns the way of one request through the engine: the first chunk waits its turn like any request, the
next one is submitted as soon as the one before it is heard, and where they meet is no click or gap.
Knows nothing about HTTP or audio formats.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from sheen.audio.io import Samples
from sheen.engine.engine import Engine
from sheen.engine.joining import Joiner, pause_after, wordless
from sheen.engine.sampler import Sampling
from sheen.engine.scheduler import Ticket
from sheen.engine.types import Finished
from sheen.engine.voice import Voice
from sheen.text.segmentation import SentenceStream, TextChunker

Normalise = Callable[[str], Awaitable[str]]

SLICE = 256
"""Characters that are cut into sentences at a time."""


class ChunkStream:
    """Sentences in, spoken chunks of at most `limit` characters out. One event loop's."""

    def __init__(self, normalise: Normalise, limit: int) -> None:
        self._normalise = normalise
        self._chunker = TextChunker(limit)
        self._sentences: deque[str] = deque()
        self._ready: deque[str] = deque()
        self._closed = False
        self._news = asyncio.Event()

    def feed(self, sentences: Iterable[str]) -> None:
        """Further sentences, complete ones."""
        self._sentences.extend(sentences)
        self._news.set()

    async def feed_text(self, text: str, stream: SentenceStream) -> None:
        """Further text. Others have their turn in between: an odd text of 4,096 characters takes
        60 ms to be cut."""
        for start in range(0, len(text), SLICE):
            self.feed(stream.push(text[start : start + SLICE]))
            await asyncio.sleep(0)

    def close(self, stream: SentenceStream | None = None) -> None:
        """No more will come than what is left in `stream`."""
        if stream is not None:
            self.feed(stream.finish())
        self._closed = True
        self._news.set()

    @property
    def last(self) -> bool:
        """Whether it is known that no chunk follows."""
        return self._closed and not (self._ready or self._sentences or self._chunker.packed)

    async def next(self) -> str | None:
        """The next chunk, or None when there is no more; waits while none is known.

        Sentences are packed together as far as they are there, and never waited for with something
        at hand. One without a word gives no chunk.
        """
        while not self._ready:
            if self._sentences:
                spoken = await self._normalise(self._sentences.popleft())
                if spoken:
                    self._ready.extend(self._chunker.push(spoken))
            elif self._chunker.packed:
                self._ready.extend(self._chunker.finish())
            elif self._closed:
                return None
            else:
                self._news.clear()
                await self._news.wait()
        return self._ready.popleft()


class SpeechFailed(RuntimeError):
    """The engine gave up on a chunk."""


@dataclass(frozen=True)
class SynthesisParams:
    """How a request wants to be spoken."""

    speaker: str | None
    sampling: Sampling
    chunk_seconds: float
    """Longest audio of a chunk."""


class Chunk:
    """One chunk at the engine: an asynchronous queue of its samples, and its finished."""

    def __init__(
        self,
        text: str,
        engine: Engine,
        voice: Voice,
        params: SynthesisParams,
        before: "Chunk | None",
    ) -> None:
        """Raises RequestError, EngineBusy, and RuntimeError when the engine has ended."""
        self.text = text
        self._items: asyncio.Queue[Samples | Finished] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def sink(item: Samples | Finished) -> None:
            loop.call_soon_threadsafe(self._items.put_nowait, item)

        self.request = voice.request(
            text, params.speaker, params.sampling, params.chunk_seconds, engine.max_seq_len
        )
        follows = None if before is None else before.ticket
        self.ticket: Ticket = engine.submit(self.request, sink, follows)

    async def next(self) -> Samples | Finished:
        return await self._items.get()


@dataclass
class Progress:
    """What has become of a text that is being spoken."""

    finish_reason: str = ""
    """`stop`, `length`, `cancelled`, `error`; empty where nothing was spoken."""
    chunks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    queue_s: float | None = None


class Speech:
    """One request being spoken; its figures go into `record`. Iterate `samples` once."""

    def __init__(
        self,
        engine: Engine,
        voice: Voice,
        params: SynthesisParams,
        chunks: ChunkStream,
        record: Progress,
    ) -> None:
        self._engine, self._voice, self._params = engine, voice, params
        self._chunks = chunks
        self._record = record
        self._joiner = Joiner(voice.codec.sample_rate)
        self._tickets: set[Ticket] = set()
        self._coming: asyncio.Task[Chunk | None] | None = None
        self._over = False

    async def samples(self) -> AsyncIterator[Samples]:
        """The stream, which is silence for a text without a word. Raises RequestError, EngineBusy
        and SpeechFailed, the first two before any sample."""
        chunk = await self._open(None)
        if chunk is None:
            yield wordless(self._voice.codec.sample_rate)
        while chunk is not None:
            self._joiner.begin(pause_after(chunk.text), self._chunks.last)
            while not isinstance(item := await chunk.next(), Finished):
                if self._coming is None:
                    self._coming = asyncio.create_task(self._open(chunk))
                if len(samples := self._joiner.push(item)):
                    yield samples
            self._close(chunk, item)
            if len(samples := self._joiner.end()):
                yield samples
            chunk = await (self._coming or self._open(chunk))
            self._coming = None
        self._over = True

    async def _open(self, before: Chunk | None) -> Chunk | None:
        """Submit the next chunk when there is one."""
        text = await self._chunks.next()
        if text is None:
            return None
        chunk = Chunk(text, self._engine, self._voice, self._params, before)
        self._tickets.add(chunk.ticket)
        self._record.chunks += 1
        self._record.input_tokens += len(chunk.request.prompt)
        return chunk

    def _close(self, chunk: Chunk, finished: Finished) -> None:
        self._tickets.discard(chunk.ticket)
        record, layout = self._record, self._voice.model.layout
        record.output_tokens += finished.frames * layout.tokens_per_frame
        if record.queue_s is None:
            record.queue_s = chunk.ticket.waited_s
        if finished.reason == "error":
            record.finish_reason = "error"
            raise SpeechFailed(f"synthesis failed: {finished.error}")
        if record.finish_reason != "length":
            record.finish_reason = finished.reason

    def cancel(self) -> None:
        """Give back what it holds, now. Nothing happens after the end."""
        for ticket in self._tickets:
            ticket.cancel()
        if self._coming is not None and not self._coming.cancel() and not self._coming.cancelled():
            self._coming.exception()  # it has ended: if it failed, nobody waits to hear of it
        if not self._over and self._record.chunks and self._record.finish_reason != "error":
            self._record.finish_reason = "cancelled"
