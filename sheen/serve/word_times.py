"""Word times of an utterance: `word_timestamps`, aligned beside it, chunk by chunk.

Owns the words of each chunk (as written in its sentences: a number, or a word of a lexicon, is one
word, however many words it is spoken with) and their times in the audio that is sent, after changes
of speed and with pauses. A chunk whose alignment fails has None and is logged; its audio is sent
nevertheless. How a clip is aligned: `sheen.scoring.asr.whisper`, `sheen.scoring.asr.transcript`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import regex

from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.engine.chunks import Normalize
from sheen.engine.types import Span
from sheen.scoring.asr.transcript import Times, refine
from sheen.text.items import as_written
from sheen.text.segmentation import has_word

logger = logging.getLogger(__name__)

WordTime = dict[str, str | int]
"""`word`, `start_ms` and `end_ms`, with vLLM-Omni's keys: from the beginning of the audio."""

_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+"
)


def written_words(sentence: str) -> list[str]:
    """Words between white space; characters in scripts without spaces. Punctuation alone is no
    word."""
    return [word for word in _WORD.findall(sentence) if has_word(word)]


class Aligner:
    """The alignment model of a replica, shared by its requests, in a thread of its own."""

    def __init__(self, model: str, language: str | None) -> None:
        """Raises ValueError, which names args.aligner, for a model that cannot be opened."""
        from sheen.scoring.asr.whisper import FasterWhisper  # with torch: only where one is opened

        try:
            # On the CPU: the model is small, and a GPU is busy with synthesis.
            self._model = FasterWhisper(model, language=language or "en")
        except ValueError as error:
            raise ValueError(f"args.aligner: {error}") from error
        self._pool = ThreadPoolExecutor(1, "sheen-aligner")

    async def align(self, samples: Samples, sample_rate: int, words: Sequence[str]) -> Times:
        """Start and end of each word in a clip `[n]`, seconds."""

        def align_here() -> Times:
            return refine(samples, sample_rate, self._model.align(samples, sample_rate, words))

        return await asyncio.get_running_loop().run_in_executor(self._pool, align_here)

    def transcribe(self, read: Callable[[], Samples], sample_rate: int) -> Future[str]:
        """The transcript of a clip `[n]`, which `read` returns in the aligner's thread."""
        return self._pool.submit(lambda: self._model.transcribe([read()], sample_rate)[0])

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class SpokenWords:
    """Maps parts of the model's input back to written words: `add` takes sentences with their
    normalized form, `take` consecutive parts of that form."""

    def __init__(self, plain_words: Callable[[str], str]) -> None:
        """plain_words: the words of either form, as `TextPipeline.expected_transcript`."""
        self._plain_words = plain_words
        self._sentences: deque[tuple[deque[str], int]] = deque()
        """The written words of each sentence, and the words left of its normalized form."""

    def add(self, sentence: str, normalized: str) -> None:
        self._sentences.append((deque(self._words(sentence)), len(self._words(normalized))))

    def take(self, normalized: str) -> list[str]:
        """The written words of the next part. A sentence in several parts whose two forms differ in
        their number of words has its words divided in proportion."""
        found: list[str] = []
        left = len(self._words(normalized))
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
        return written_words(self._plain_words(text))


class WordTimes:
    """Word times of one utterance: `push` its audio, take times by `ready` and `rest`, `close`."""

    def __init__(
        self, aligner: Aligner, sample_rate: int, plain_words: Callable[[str], str]
    ) -> None:
        """plain_words: as for `SpokenWords`."""
        self._aligner, self._rate = aligner, sample_rate
        self._spoken = SpokenWords(plain_words)
        self._begun = 0
        self._words: list[str] = []
        self._samples: list[Samples] = []
        self._times: list[tuple[int, float]] = []
        """Positions in the chunk's samples, and their times in the audio that is sent, seconds."""
        self._at = 0.0
        self._aligning: deque[asyncio.Task[list[WordTime] | None]] = deque()

    def reading(self, normalize: Normalize) -> Normalize:
        """`normalize`, with its sentences recorded."""

        async def read(sentence: str) -> str:
            normalized = await normalize(sentence)
            if normalized:
                self._spoken.add(as_written(sentence), normalized)
            return normalized

        return read

    def push(self, span: Span, seconds: float, chunks: Sequence[str]) -> None:
        """Add samples, their duration in the audio that is sent, and the texts of all chunks so
        far; new chunks begin with these samples."""
        if len(chunks) > self._begun:
            self._end_chunk()
            self._words = [
                word for text in chunks[self._begun :] for word in self._spoken.take(text)
            ]
            self._begun = len(chunks)
        if span.rate is not None and self._begun:
            if not self._samples:
                self._times = [(0, self._at)]
            self._samples.append(span.samples)
            length = self._times[-1][0] + len(span.samples)
            self._times.append((length, self._at + seconds))
        self._at += seconds

    def ready(self) -> list[list[WordTime] | None]:
        """Chunks aligned since the last call, in order."""
        found = []
        while self._aligning and self._aligning[0].done():
            found.append(self._aligning.popleft().result())
        return found

    async def rest(self) -> AsyncIterator[list[WordTime] | None]:
        """After the last samples: the chunks that `ready` has not returned."""
        self._words += self._spoken.rest()
        self._end_chunk()
        while self._aligning:
            yield await self._aligning.popleft()

    async def all(self) -> list[WordTime] | None:
        """After the last samples: word times of the whole text, or None if a chunk has none."""
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
                asyncio.create_task(self._align(samples, self._words, self._times))
            )
        self._words, self._samples, self._times = [], [], []

    async def _align(
        self, samples: Samples, words: list[str], points: list[tuple[int, float]]
    ) -> list[WordTime] | None:
        try:
            times = await self._aligner.align(samples, self._rate, words)
        except Exception:
            logger.exception("%d words could not be aligned", len(words))
            return None
        places, seconds = zip(*(points or [(0, self._at)]), strict=True)

        def ms(time: float) -> int:
            return round(1000 * float(np.interp(time * self._rate, places, seconds)))

        return [
            {"word": word, "start_ms": ms(start), "end_ms": ms(end)}
            for word, (start, end) in zip(words, times, strict=True)
        ]
