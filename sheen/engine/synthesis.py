"""Synthesis for callers without an event loop: `sheen.engine.longform`, run in a thread.

Owns the thread and its event loop, an iterator of one text's samples, and the synthesis of many
texts at once. The samples are those of `longform`.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Generic, Self, TypeVar

import numpy as np

from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.engine.engine import Engine
from sheen.engine.longform import Speech, inline, open_speech
from sheen.engine.types import FinishReason, RequestError, Span, SynthesisParams
from sheen.engine.voice import Voice

Result = TypeVar("Result")


class Synthesis(Iterator[Span]):
    """The synthesis of one text, see `synthesize`: an iterator of spans of samples."""

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
        """Valid after the last samples. `stop`: every chunk ended with EOS, or the text has no word
        and gave a short silence; `length`: a chunk reached its limit of audio."""
        return self._progress.finish_reason or "stop"

    def close(self) -> None:
        """Cancel the remaining synthesis and end the iterator."""
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
    """Synthesize a text of any length: iterate the result for its spans.

    normalize: converts a sentence to the model's input form (default: `Voice.model_input`). Close
    the result, or use it as a context manager, to cancel the rest. Raises RequestError for an empty
    text, invalid markup, and an unknown voice; the iterator raises EngineBusy and SpeechFailed.
    """
    speech = open_speech(engine, voice, text, params, inline(normalize or voice.model_input))
    return Synthesis(speech, voice.codec.sample_rate)


@dataclass(frozen=True)
class Synthesized:
    """A text's samples `[n]` and finish reason, see `Synthesis.finish_reason`."""

    samples: Samples
    text: str
    """Its spoken words, with which a transcript is compared."""
    model_input: str
    """The model's input form, which may be phonemes."""
    finish_reason: FinishReason


def synthesize_all(
    engine: Engine, voice: Voice, texts: Sequence[tuple[str, SynthesisParams]]
) -> list[Synthesized | RequestError]:
    """Synthesize any number of texts, enough at a time to keep the engine's slots busy; waits.

    Results are in the order of `texts`; for a text that cannot be synthesized, its RequestError.
    Raises SpeechFailed if the engine failed.
    """

    async def speak(text: str, params: SynthesisParams) -> Synthesized | RequestError:
        words: list[str] = []
        model_input: list[str] = []

        async def normalize(sentence: str) -> str:
            words.append(voice.pipeline.words(sentence))
            model_input.append(voice.pipeline.model_input(words[-1]))
            return model_input[-1]

        async with places:
            try:
                speech = open_speech(engine, voice, text, params, normalize)
                with closing(speech):
                    samples = [NO_SAMPLES, *[span.samples async for span in speech.spans()]]
            except RequestError as error:
                return error
        return Synthesized(
            np.concatenate(samples),
            " ".join(filter(None, map(voice.pipeline.expected_transcript, words))),
            " ".join(filter(None, model_input)),
            speech.progress.finish_reason or "stop",
        )

    async def speak_all() -> list[Synthesized | RequestError]:
        # The longest first, so that no long text remains at the end.
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index][0]))
        results = await asyncio.gather(*(speak(*texts[index]) for index in order))
        return [result for _, result in sorted(zip(order, results, strict=True), key=itemgetter(0))]

    # More than the slots: texts whose tokens are complete still wait for their audio.
    places = asyncio.Semaphore(engine.slots + min(engine.slots, engine.max_queue))
    return _Background(speak_all()).result()


class _Background(Generic[Result]):
    """A coroutine in a thread with its own event loop, since the caller may be inside a running
    one, such as a notebook's."""

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
