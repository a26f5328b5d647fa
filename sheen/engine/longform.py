"""Long-form synthesis: a text of any length -> one stream of samples.

Owns the one way from text to audio, for the server, the Python API, the command line and
evaluation. Sentences are normalized and packed into chunks, and their samples joined, by `chunks`;
each chunk is a request to the engine, submitted when the one before it gives its first audio. The
same text, parameters and seed give the same samples, whoever asks. Knows nothing about HTTP or
audio formats.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, Self, TypeVar

import numpy as np

from sheen.audio.samples import NO_SAMPLES, Samples
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
    FinishReason,
    Progress,
    RequestError,
    Span,
    SpeechFailed,
    SynthesisParams,
)
from sheen.engine.voice import Voice
from sheen.text.delivery import deliver
from sheen.text.items import DeliveryError, Pause, Style

Result = TypeVar("Result")


class Chunk:
    """One chunk at the engine: an asynchronous queue of its samples, and how it ended."""

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
        self.request = voice.request(
            text,
            speaker,
            params.sampling,
            params.chunk_seconds,
            engine.max_seq_len,
            # Another voice that a document names speaks for itself.
            params.reference if speaker == params.speaker else None,
            params.instruction,
        )
        follows = None if before is None else before.ticket
        self.ticket: Ticket = engine.submit(self.request, sink, follows)

    async def next(self) -> Samples | Finished:
        return await self._items.get()


class Speech:
    """One text at the engine; its figures go into `progress`. Iterate `spans` once."""

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
        """Of the chunks that are being heard or have been, in the form that the model is given."""
        self._joiner = Joiner(voice.codec.sample_rate)
        self._tickets: set[Ticket] = set()
        self._coming: asyncio.Task[Chunk | None] | None = None
        self._pauses: deque[Pause] = deque()  # before the next chunk
        self._over = False

    async def spans(self) -> AsyncIterator[Span]:
        """The stream, which is silence for a text without a word. Raises RequestError, EngineBusy
        and SpeechFailed, the first two before any sample but those of a pause."""
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
        """Submit the next chunk when there is one; the pauses before it wait for it to be heard."""
        while isinstance(text := await self._chunks.next(), Pause):
            self._pauses.append(text)
        if text is None:
            return None
        style = self._chunks.style
        chunk = Chunk(text, self._engine, self._voice, self._params, before, style)
        self._tickets.add(chunk.ticket)
        self.progress.chunks += 1
        self.progress.input_tokens += len(chunk.request.prompt)
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
        """Cancel what is not finished, and give back what it holds. After the end, do nothing."""
        for ticket in self._tickets:
            ticket.cancel()
        if self._coming is not None and not self._coming.cancel() and not self._coming.cancelled():
            self._coming.exception()  # it has ended: if it failed, nobody waits to hear of it
        if not self._over and self.progress.chunks and self.progress.finish_reason != "error":
            self.progress.finish_reason = "cancelled"


def open_speech(
    engine: Engine, voice: Voice, text: str, params: SynthesisParams, normalize: Normalize
) -> Speech:
    """A text that is whole, ready to be spoken. Raises RequestError, see `Voice.check`, for what
    cannot be."""
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


class Synthesis(Iterator[Span]):
    """A text being synthesized, see `synthesize`: an iterator of spans of samples."""

    def __init__(self, speech: Speech, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._progress = speech.progress
        self._items: queue.SimpleQueue[Span | None] = queue.SimpleQueue()
        self._closed = False
        self._background = _Background(self._produce(speech))

    async def _produce(self, speech: Speech) -> None:
        try:
            async for span in speech.spans():
                self._items.put(span)
        finally:
            speech.close()
            self._items.put(None)

    def __next__(self) -> Span:
        """Waits for samples. Raises RequestError, EngineBusy and SpeechFailed."""
        if self._closed:
            raise StopIteration
        if (span := self._items.get()) is None:
            self._closed = True
            self._background.result()
            raise StopIteration
        return span

    @property
    def finish_reason(self) -> FinishReason:
        """How it ended, known after the last samples. `stop`: every chunk ended with EOS, or the
        text has no word and its speech is a short silence; `length`: a chunk met its budget."""
        return self._progress.finish_reason or "stop"

    def close(self) -> None:
        """Cancel what has not been generated yet, and end the iterator."""
        self._closed = True
        self._background.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def synthesize(
    engine: Engine,
    voice: Voice,
    text: str,
    params: SynthesisParams,
    normalize: Callable[[str], str] | None = None,
) -> Synthesis:
    """Speak a text of any length, for code that waits: iterate the result for its spans.

    normalize: gives a sentence its spoken form (default: `voice.spoken`). Close the result, or use
    it as a context manager, to cancel what is left. Raises RequestError for an empty text, a mark
    in it that cannot be followed, and an unknown voice; the iterator raises EngineBusy and
    SpeechFailed.
    """
    speech = open_speech(engine, voice, text, params, inline(normalize or voice.spoken))
    return Synthesis(speech, voice.codec.sample_rate)


@dataclass(frozen=True)
class Synthesized:
    """A text's samples `[n]`, and how it ended, see `Synthesis.finish_reason`."""

    samples: Samples
    text: str
    """Its words as they are spoken: what a transcript is compared with."""
    taught: str
    """The form in which the model was given it, which may be phonemes."""
    finish_reason: FinishReason


def synthesize_all(
    engine: Engine, voice: Voice, texts: Sequence[tuple[str, SynthesisParams]]
) -> list[Synthesized | RequestError]:
    """Speak any number of texts, as many at once as keep the engine's slots busy; wait for all.

    In the order of `texts`; a text that cannot be spoken gives its RequestError. Raises
    SpeechFailed when the engine failed.
    """

    async def speak(text: str, params: SynthesisParams) -> Synthesized | RequestError:
        words: list[str] = []
        taught: list[str] = []

        async def normalize(sentence: str) -> str:
            words.append(voice.pipeline.words(sentence))
            taught.append(voice.pipeline.taught(words[-1]))
            return taught[-1]

        async with places:
            try:
                speech = open_speech(engine, voice, text, params, normalize)
                with closing(speech):
                    samples = [NO_SAMPLES, *[span.samples async for span in speech.spans()]]
            except RequestError as error:
                return error
        return Synthesized(
            np.concatenate(samples),
            " ".join(filter(None, map(voice.pipeline.said, words))),
            " ".join(filter(None, taught)),
            speech.progress.finish_reason or "stop",
        )

    async def speak_all() -> list[Synthesized | RequestError]:
        # The longest first: whatever runs last runs alone.
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index][0]))
        results = await asyncio.gather(*(speak(*texts[index]) for index in order))
        return [result for _, result in sorted(zip(order, results, strict=True), key=itemgetter(0))]

    # Beyond the slots: texts whose tokens are all there still wait for their audio.
    places = asyncio.Semaphore(engine.slots + min(engine.slots, engine.max_queue))
    return _Background(speak_all()).result()


def inline(normalize: Callable[[str], str]) -> Normalize:
    """A function that computes in the event loop's thread, for `ChunkStream`."""

    async def normalize_here(sentence: str) -> str:
        return normalize(sentence)

    return normalize_here


class _Background(Generic[Result]):
    """A coroutine in a thread with an event loop of its own, since the caller may be in one that
    runs already (a notebook)."""

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._future: Future[Result] = Future()
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(coroutine,), name="sheen-longform", daemon=True
        )
        self._thread.start()

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        async def main() -> Result:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            self._started.set()
            return await coroutine

        try:
            self._future.set_result(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - it is raised in the other thread
            self._future.set_exception(error)

    def result(self) -> Result:
        """Wait for it; raises what it raised."""
        return self._future.result()

    def cancel(self) -> None:
        """Cancel it, and wait until it has ended."""
        self._started.wait()
        with suppress(RuntimeError):  # the loop is closed: it has ended already
            assert self._task is not None
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
