"""Sentences of a text, as they arrive -> chunks that the model can speak.

Owns when a sentence is normalized and packed: not before its chunk is asked for, so the first chunk
plays while the rest is still text. Where a text may be cut is `sheen.text.segmentation`'s. Knows
nothing about audio.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable

from sheen.text.segmentation import SentenceStream, TextChunker

Normalize = Callable[[str], Awaitable[str]]
"""A sentence as written -> as it is spoken; empty for one without a word."""

SLICE = 256
"""Characters that are cut into sentences at a time."""


class ChunkStream:
    """Sentences in, spoken chunks of at most `limit` characters out. One event loop's."""

    def __init__(self, normalize: Normalize, limit: int) -> None:
        self._normalize = normalize
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
                spoken = await self._normalize(self._sentences.popleft())
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
