"""Chunks of a long text: sentences are packed into them as they arrive, their samples joined.

Owns when a sentence is normalized and packed: not before its chunk is asked for, so the first chunk
plays while the rest is still text. Where a text may be cut is `sheen.text.segmentation`'s.

Owns the seams too. What the model puts around a chunk (silence before and after speech, a last
sample of any value) becomes one pause of a chosen length between two chunks, with short fades on
both sides. Samples inside a chunk are not changed, and a text of a single chunk passes untouched. A
pause that the text asks for (`sheen.text.delivery`) is exactly so many zeros in that place.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator

import numpy as np

from sheen.audio.samples import NO_SAMPLES, Samples, SilenceTrim
from sheen.text.delivery import TextStream
from sheen.text.items import Item, Pause, Style
from sheen.text.segmentation import TextChunker

Normalize = Callable[[str], Awaitable[str]]
"""A sentence as written -> as it is spoken; empty for one without a word."""

SLICE = 256
"""Characters that are cut into sentences at a time."""


class ChunkStream:
    """Sentences in, spoken chunks of at most `limit` characters out, and pauses between them.

    `style` is the one of what was given last; None for the request's own. One event loop's.
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
        """Further sentences, complete ones, and pauses."""
        self._items.extend(items)
        self._news.set()

    async def feed_text(self, text: str, stream: TextStream) -> None:
        """Further text. Others have their turn in between: an odd text of 4,096 characters takes
        60 ms to be cut. Raises what the stream does."""
        for start in range(0, len(text), SLICE):
            self.feed(stream.push(text[start : start + SLICE]))
            await asyncio.sleep(0)

    def close(self, stream: TextStream | None = None) -> None:
        """No more will come than what is left in `stream`."""
        if stream is not None:
            self.feed(stream.finish())
        self._closed = True
        self._news.set()

    @property
    def last(self) -> bool:
        """Whether it is known that no chunk follows."""
        left = self._ready or self._chunker.packed or self._following() is not None
        return self._closed and not left

    @property
    def pauses(self) -> bool:
        """Whether it is known that a pause follows what was given last."""
        return not self._ready and isinstance(self._following(), Pause)

    def _following(self) -> str | Pause | None:
        """The next sentence or pause that is there."""
        return next((item for item in self._items if not isinstance(item, Style)), None)

    async def next(self) -> str | Pause | None:
        """The next chunk or pause, or None when there is no more; waits while none is known.

        Sentences are packed together as far as they are there, and never waited for with something
        at hand. One without a word gives no chunk.
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


SILENCE = 0.01
"""Of full scale; what stays below is a pause."""
FADE_S = 0.005
"""Long against a sample, short against a sound: a step of any height becomes inaudible."""
ONSET_S = 0.03
"""Silence kept before a chunk's first sound, which is softer than the sound."""

PAUSES_S = {".!?…。！？": 0.3, ",;:—–，、；：": 0.18}
"""By a chunk's last character. Readers of English pause about that long, between sentences twice as
long as between clauses (Krivokapić, "Prosodic planning", 2007)."""
WORD_PAUSE_S = 0.06
WORDLESS_S = 0.2
"""Silence that is the speech of a text without a word (`text.has_word`). Clients that read line by
line send such texts (a rule of a table, an emoji), and some end the reading at an error."""


def pause_after(text: str) -> float:
    """Seconds of silence after a chunk with this text."""
    last = text.rstrip("\"'”’»)]} ")[-1:]
    for ends, seconds in PAUSES_S.items():
        if last and last in ends:
            return seconds
    return WORD_PAUSE_S


def wordless(sample_rate: int) -> Samples:
    """The speech of a text without a word, `[n]`."""
    return np.zeros(round(WORDLESS_S * sample_rate), np.float32)


def silence(seconds: float, sample_rate: int) -> Iterator[Samples]:
    """round(seconds * sample_rate) zeros in all, `[n]`, a second at a time: a client that does not
    read holds no more."""
    left = round(seconds * sample_rate)
    while left > 0:
        yield np.zeros(min(left, sample_rate), np.float32)
        left -= sample_rate


class Joiner:
    """Samples of chunks in, in order, and out as they may be heard.

    Begin every chunk with `begin`; then `push` its samples and `end` it. What `push` and `end`
    return, put together, is the stream.
    """

    def __init__(self, sample_rate: int) -> None:
        self._rate = sample_rate
        self._fade = round(FADE_S * sample_rate)
        self._trim: SilenceTrim | None = None
        self._held = NO_SAMPLES
        self._quiet = 0  # samples of the pause that have gone out
        self._fading = 0  # samples of the fade that are still to come
        self._pause = 0
        self._last = True
        self._chunks = 0

    def begin(self, pause_s: float, last: bool) -> None:
        """The next chunk, after which `pause_s` of silence are due unless it is the `last`.

        One of which nobody knows yet whether it is the last is not.
        """
        first = self._chunks == 0
        self._trim = None if first else SilenceTrim(self._rate, SILENCE, ONSET_S)
        self._fading = 0 if first else self._fade
        self._pause = max(self._fade, round(pause_s * self._rate))
        self._last = last
        self._quiet = 0
        self._fading = 0 if first else self._fade
        self._chunks += 1

    def push(self, samples: Samples) -> Samples:
        """The samples `[n]` that may go out.

        Held back, unless the chunk is the last: as many as the fade takes, and silence beyond the
        pause, which is dropped if no sound follows it.
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
        """No more of this chunk will come: what was held back `[n]`, and the rest of the pause;
        without `pad` no more of it than the chunk's own silence."""
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
        """Where in what is held the silence after the last sound begins, and how much of it is
        still due. Sound in what is held begins the pause anew."""
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
