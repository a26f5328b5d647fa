"""Word times of an utterance: `word_timestamps`, aligned beside it, chunk by chunk.

Owns which words a chunk speaks (those of its sentences, as they are written or a lexicon has them:
a number is one word, however many are spoken for it), and when they are heard, whatever the speed
and the pauses. A chunk that cannot be aligned has None, which is logged; its audio is sent all the
same. How a clip is aligned: `sheen.scoring.whisper`, `sheen.scoring.word_times`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import regex

from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.engine.chunks import Normalize
from sheen.engine.types import Span
from sheen.scoring.whisper import FasterWhisper
from sheen.scoring.word_times import Times, refine
from sheen.text.segmentation import has_word

logger = logging.getLogger(__name__)

WordTime = dict[str, str | int]
"""`word`, `start_ms` and `end_ms`, as vLLM-Omni has them: from the beginning of the audio."""

_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+"
)


def written_words(sentence: str) -> list[str]:
    """Between white space; of a script without spaces, its characters. Not those of signs alone."""
    return [word for word in _WORD.findall(sentence) if has_word(word)]


class Aligner:
    """One of a replica, for all its requests. Threads of one event loop."""

    def __init__(self, model: str, language: str | None) -> None:
        """Raises ValueError, which names args.aligner, for a model that cannot be opened."""
        try:
            # On the CPU: it is small, and a GPU has its hands full.
            self._model = FasterWhisper(model, language=language or "en")
        except ValueError as error:
            raise ValueError(f"args.aligner: {error}") from error
        self._pool = ThreadPoolExecutor(1, "sheen-aligner")

    async def align(self, samples: Samples, sample_rate: int, words: Sequence[str]) -> Times:
        """When each word of a clip `[n]` is spoken, seconds within it."""

        def align_here() -> Times:
            return refine(samples, sample_rate, self._model.align(samples, sample_rate, words))

        return await asyncio.get_running_loop().run_in_executor(self._pool, align_here)

    async def transcribe(self, samples: Samples, sample_rate: int) -> str:
        """What is said in a clip `[n]`."""

        def transcribe_here() -> str:
            return self._model.transcribe([samples], sample_rate)[0]

        return await asyncio.get_running_loop().run_in_executor(self._pool, transcribe_here)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class SpokenWords:
    """Sentences in with the form that the model is given; of that form's parts, one after another,
    the words."""

    def __init__(self, said: Callable[[str], str]) -> None:
        """said: the words of either form, see `TextPipeline.expected_transcript`."""
        self._said = said
        self._sentences: deque[tuple[deque[str], int]] = deque()
        """Of each, its written words, and how many words its other form has left."""

    def add(self, sentence: str, taught: str) -> None:
        self._sentences.append((deque(self._words(sentence)), len(self._words(taught))))

    def take(self, taught: str) -> list[str]:
        """The written words of the next part. Where a sentence is cut and its two forms have other
        numbers of words, they are shared out evenly."""
        found: list[str] = []
        left = len(self._words(taught))
        while left > 0 and self._sentences:
            words, count = self._sentences.popleft()
            share = len(words) if count <= left else round(len(words) * left / count)
            found += [words.popleft() for _ in range(share)]
            if count > left:
                self._sentences.appendleft((words, count - left))
            left -= count
        return found

    def rest(self) -> list[str]:
        return [word for words, _ in self._sentences for word in words]

    def _words(self, text: str) -> list[str]:
        return written_words(self._said(text))


class WordTimes:
    """Of one utterance: give it what is heard, and take what is aligned. Close it."""

    def __init__(self, aligner: Aligner, sample_rate: int, said: Callable[[str], str]) -> None:
        """said: as of `SpokenWords`."""
        self._aligner, self._rate = aligner, sample_rate
        self._spoken = SpokenWords(said)
        self._begun = 0
        self._words: list[str] = []
        self._samples: list[Samples] = []
        self._heard: list[tuple[int, float]] = []
        """Samples of the chunk, and the time at which that one is heard."""
        self._at = 0.0
        self._aligning: deque[asyncio.Task[list[WordTime] | None]] = deque()

    def reading(self, normalize: Normalize) -> Normalize:
        """`normalize`, overheard."""

        async def read(sentence: str) -> str:
            taught = await normalize(sentence)
            if taught:
                self._spoken.add(sentence, taught)
            return taught

        return read

    def push(self, span: Span, seconds: float, chunks: Sequence[str]) -> None:
        """The next samples, how long they are heard, and the texts of all chunks so far: those
        that are new begin with it."""
        if len(chunks) > self._begun:
            self._end_chunk()
            self._words = [
                word for text in chunks[self._begun :] for word in self._spoken.take(text)
            ]
            self._begun = len(chunks)
        if span.rate is not None and self._begun:
            if not self._samples:
                self._heard = [(0, self._at)]
            self._samples.append(span.samples)
            length = self._heard[-1][0] + len(span.samples)
            self._heard.append((length, self._at + seconds))
        self._at += seconds

    def ready(self) -> list[list[WordTime] | None]:
        """What has been aligned since, chunk by chunk, in order."""
        found = []
        while self._aligning and self._aligning[0].done():
            found.append(self._aligning.popleft().result())
        return found

    async def rest(self) -> AsyncIterator[list[WordTime] | None]:
        """After the last samples: what `ready` has not given."""
        self._words += self._spoken.rest()
        self._end_chunk()
        while self._aligning:
            yield await self._aligning.popleft()

    async def all(self) -> list[WordTime] | None:
        """After the last samples: the whole text's; None where a chunk has none."""
        chunks = [words async for words in self.rest()]
        if any(words is None for words in chunks):
            return None
        return [word for words in chunks for word in words or ()]

    def close(self) -> None:
        for task in self._aligning:
            task.cancel()

    def _end_chunk(self) -> None:
        samples = np.concatenate([NO_SAMPLES, *self._samples])
        if self._words:
            self._aligning.append(
                asyncio.create_task(self._align(samples, self._words, self._heard))
            )
        self._words, self._samples, self._heard = [], [], []

    async def _align(
        self, samples: Samples, words: list[str], heard: list[tuple[int, float]]
    ) -> list[WordTime] | None:
        try:
            times = await self._aligner.align(samples, self._rate, words)
        except Exception:
            logger.exception("%d words could not be aligned", len(words))
            return None
        places, seconds = zip(*(heard or [(0, self._at)]), strict=True)

        def ms(time: float) -> int:
            return round(1000 * float(np.interp(time * self._rate, places, seconds)))

        return [
            {"word": word, "start_ms": ms(start), "end_ms": ms(end)}
            for word, (start, end) in zip(words, times, strict=True)
        ]
