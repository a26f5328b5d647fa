"""Chunks of a long text: packing sentences as they arrive, and joining samples.

Owns when a sentence is normalized and packed: only when its chunk is needed, so that the first
chunk plays while the rest is still text. Where a text may be split is `sheen.text.segmentation`'s.

Also owns the joins. The model's silence around a chunk, and a last sample of any value, become one
pause of a chosen length between two chunks, with short fades on both sides. Samples inside a chunk,
and a text of a single chunk, are not changed. A pause mark in the text (`sheen.text.delivery`)
becomes exactly that many zeros.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

import numpy as np

from sheen.audio.samples import NO_SAMPLES, SILENCE, Samples, SilenceTrim
from sheen.text.delivery import TextStream
from sheen.text.items import Item, Pause, Style
from sheen.text.segmentation import TextChunker

Normalize = Callable[[str], Awaitable[str]]
"""A sentence as written -> the model's input form; empty for one without a word."""

SLICE = 256
"""Characters that are cut into sentences at a time."""


class ChunkStream:
    """Sentences in; normalized chunks of at most `limit` characters, and pauses, out.

    `style` is that of the last chunk returned; None for the request's own. For one event loop.
    """

    def __init__(self, normalize: Normalize, limit: int) -> None:
        self._normalize = normalize
        self._chunker = TextChunker(limit)
        self._items: deque[Item] = deque()
        self._ready: deque[str] = deque()
        self._closed = False
        self.style: Style | None = None
        self._news = asyncio.Event()

    def feed(self, items: Iterable[Item]) -> None:
        """Add complete sentences, pauses and styles."""
        self._items.extend(items)
        self._news.set()

    async def feed_text(self, text: str, stream: TextStream) -> None:
        """Add text, yielding to other tasks in between: an unusual text of 4,096 characters takes
        60 ms to segment. Raises the stream's errors."""
        for start in range(0, len(text), SLICE):
            self.feed(stream.push(text[start : start + SLICE]))
            await asyncio.sleep(0)

    def close(self, stream: TextStream | None = None) -> None:
        """End the input, after the rest of `stream`."""
        if stream is not None:
            self.feed(stream.finish())
        self._closed = True
        self._news.set()

    @property
    def last(self) -> bool:
        """Whether it is certain that no chunk follows."""
        left = self._ready or self._chunker.packed or self._following() is not None
        return self._closed and not left

    @property
    def pauses(self) -> bool:
        """Whether it is certain that a pause follows the last chunk returned."""
        return not self._ready and isinstance(self._following(), Pause)

    def _following(self) -> str | Pause | None:
        """The next queued sentence or pause."""
        return next((item for item in self._items if not isinstance(item, Style)), None)

    async def next(self) -> str | Pause | None:
        """The next chunk or pause, None at the end; waits if nothing is queued.

        Packs the sentences that are queued, without waiting for more. A sentence without a word
        gives no chunk.
        """
        while not self._ready:
            head = self._items[0] if self._items else None
            if isinstance(head, str):
                self._items.popleft()
                spoken = await self._normalize(head)
                if spoken:
                    self._ready.extend(self._chunker.push(spoken))
            elif self._chunker.packed:
                self._ready.extend(self._chunker.finish())
            elif isinstance(head, Pause):
                self._items.popleft()
                return head
            elif isinstance(head, Style):
                self._items.popleft()
                self.style = head
            elif self._closed:
                return None
            else:
                self._news.clear()
                await self._news.wait()
        return self._ready.popleft()


FADE_S = 0.005
"""Long enough to make a step inaudible, short compared with a sound."""
ONSET_S = 0.03
"""Silence kept before the first sound of a chunk that follows another. Less than of an utterance's
(KEPT_SILENCE_S): it adds to the pause."""

PAUSES_S = {".!?…。！？": 0.3, ",;:—–，、；：": 0.18}
"""Pauses by a chunk's last character, about as long as those of English readers, who pause twice as
long between sentences as between clauses (Krivokapić, "Prosodic planning", 2007)."""
WORD_PAUSE_S = 0.06
WORDLESS_S = 0.2
"""Silence for a text without a word (`text.has_word`). Clients that read line by line send such
texts (a table rule, an emoji), and some stop reading at an error."""


def pause_after(text: str) -> float:
    """Seconds of silence after a chunk with this text."""
    last = text.rstrip("\"'”’»)]} ")[-1:]
    for ends, seconds in PAUSES_S.items():
        if last and last in ends:
            return seconds
    return WORD_PAUSE_S


def wordless(sample_rate: int) -> Samples:
    """The silence for a text without a word, `[n]`."""
    return np.zeros(round(WORDLESS_S * sample_rate), np.float32)


def silence(seconds: float, sample_rate: int) -> Iterator[Samples]:
    """round(seconds * sample_rate) zeros in all, `[n]`, a second at a time, so that a slow client
    does not cost more memory."""
    left = round(seconds * sample_rate)
    while left > 0:
        yield np.zeros(min(left, sample_rate), np.float32)
        left -= sample_rate


class Joiner:
    """Joins the samples of chunks, in order, to one stream.

    For every chunk call `begin`, `push` its samples, and `end`; the concatenated results of `push`
    and `end` are the stream.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._fade = round(FADE_S * sample_rate)
        self._trim: SilenceTrim | None = None
        self._held = NO_SAMPLES
        self._quiet = 0  # samples of the pause that were returned
        self._fading = 0  # remaining samples of the fade
        self._pause = 0
        self._last = True
        self._chunks = 0

    def begin(self, pause_s: float, last: bool) -> None:
        """Start the next chunk, which is followed by `pause_s` of silence unless it is the `last`.

        `last` must be False while more text may follow.
        """
        first = self._chunks == 0
        self._trim = None if first else SilenceTrim(self._rate, keep_s=ONSET_S)
        self._pause = max(self._fade, round(pause_s * self._rate))
        self._last = last
        self._quiet = 0
        self._fading = 0 if first else self._fade
        self._chunks += 1

    def push(self, samples: Samples) -> Samples:
        """The samples `[n]` that are ready.

        Held back, unless the chunk is the last: the samples of the fade, and silence beyond the
        pause, which is dropped if no sound follows.
        """
        passed = samples if self._trim is None else self._trim.push(samples)
        passed = self._faded_in(passed)
        if self._last:
            return passed
        self._held = np.concatenate([self._held, passed])
        silence, left = self._silence()
        ready = max(0, min(len(self._held), silence + left) - self._fade)
        self._quiet += ready - min(ready, silence)
        released, self._held = self._held[:ready], self._held[ready:]
        return released

    def end(self, *, pad: bool = True) -> Samples:
        """End the chunk: returns the samples held back `[n]` and the rest of the pause; without
        `pad`, only the chunk's own silence."""
        rest = NO_SAMPLES if self._trim is None else self.push(self._trim.flush())
        if self._last:
            return rest
        silence, left = self._silence()
        kept = self._held[: silence + left]
        fade = min(self._fade, len(kept))
        down = np.arange(fade, 0, -1, dtype=np.float32) / (self._fade + 1)
        faded = kept[len(kept) - fade :] * down
        missing = max(0, left - (len(kept) - silence)) if pad else 0
        self._held = NO_SAMPLES
        pause = np.zeros(missing, np.float32)
        return np.concatenate([rest, kept[: len(kept) - fade], faded, pause])

    def _silence(self) -> tuple[int, int]:
        """Start of the silence at the end of the held samples, and how much of the pause is still
        due. Sound in the held samples restarts the pause."""
        loud = np.flatnonzero(np.abs(self._held) >= SILENCE)
        if len(loud):
            self._quiet = 0
        start = int(loud[-1]) + 1 if len(loud) else 0
        return start, self._pause - self._quiet

    def _faded_in(self, samples: Samples) -> Samples:
        count = min(self._fading, len(samples))
        if not count:
            return samples
        done = self._fade - self._fading
        up = np.arange(done + 1, done + count + 1, dtype=np.float32) / (self._fade + 1)
        self._fading -= count
        return np.concatenate([samples[:count] * up, samples[count:]])
