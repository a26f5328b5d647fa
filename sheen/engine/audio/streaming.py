"""The streaming decoder: tokens in, samples out, while the utterance is still being generated.

Owns when frames are decoded, which of the decoded samples are final, and the few shapes of batches
of windows on a GPU (`WindowShapes`). The samples are those of decoding the whole utterance (to the
bit on a CPU), including the first and the last frame, for any chunk sizes: each window has the
context that the codec's receptive field needs, and noise is a function of position. Windows of
several streams are decoded in one batch; if a stream's frames arrive faster than they are decoded,
several chunks are decoded as one window, which saves context. With a `look_ahead`, the first
audible chunk, and chunks of trimmed silence before it, wait for fewer frames than they need: audio
starts earlier, and the last samples of the chunk differ (decision 0016 has the error).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import NO_SAMPLES
from sheen.codec.layout import TokenLayout
from sheen.codec.windows import Window, WindowCodec

DEFAULT_RAMP = (1, 2, 4, 8, 12)
"""Frames of the first chunks; the last value repeats. The first ones are small for an early start;
later ones are larger, because each window decodes up to 6 frames of context again."""
LONGEST_WINDOW = 36
"""Most frames of several chunks in one window: other streams wait meanwhile."""
BATCH_COUNTS = 1, 2, 4, 8, 12, 16
"""Windows of a batch. With up to four a GPU waits for its kernels' launches all the same."""
SETTLED = 8
"""Chunks after those of the ramp, by which windows have all of their context."""


@dataclass(frozen=True)
class WindowShapes:
    """The few shapes of batches of windows on a GPU: one of `counts` windows of one of `lengths`
    frames, both ascending, to which batches are padded.

    There each new shape of a convolution costs its library a plan, of milliseconds, some twenty
    times in a codec, in the thread that all streams wait for. Windows have any length up to that of
    an utterance's end, and come in any number. They are padded to the lengths that streams have
    while they run, and to a few for streams that fell behind: mostly at the ends of utterances.
    Batches are padded to few numbers: five windows to eight, nine to twelve, thirteen to sixteen.
    That is more arithmetic, but less than the launches of a second batch take. No sample changes:
    the codec computes each row as if it were as long as its own frames. A CPU plans nothing, and
    pads nothing.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]

    @staticmethod
    def of(
        codec: WindowCodec, ramp: Sequence[int], look_ahead: int | None, most: int
    ) -> "WindowShapes":
        """Those of streams with this `ramp` and `look_ahead` (see StreamingDecoder), of which at
        most so many are decoded in a batch."""
        found: set[int] = set()
        block = codec.block_frames

        def note(first: int, size: int, hurries: bool = False) -> None:
            window = codec.window(first, first + size, None)
            stop = window.stop
            if hurries and look_ahead is not None:
                stop = min(stop, -(-(first + size + look_ahead) // block) * block)
            found.add(stop - window.start)

        first = 0
        for chunk in range(len(ramp) + SETTLED):
            size = ramp[min(chunk, len(ramp) - 1)]
            note(first, size)
            note(first, size, hurries=True)
            first += size
        # Of several chunks, for streams that fell behind: the last chunk's size and its doubles.
        size, longest = 2 * ramp[-1], max(LONGEST_WINDOW, *ramp)
        while size < longest:
            note(first, size)
            size *= 2
        for place in range(block):  # where in a block a window begins decides its length
            note(first + place, longest)
        counts = [count for count in BATCH_COUNTS if count < most]
        return WindowShapes(tuple(sorted(found)), (*counts, most))

    def length(self, frames: int) -> int:
        """The number of frames that a window of so many is padded to."""
        return next(length for length in self.lengths if length >= frames)

    def count(self, windows: int) -> int:
        """The number of windows that a batch of so many is padded to."""
        return next(count for count in self.counts if count >= windows)

    def compute_all(self, codec: WindowCodec) -> None:
        """Decode a batch of each shape once."""
        for length in self.lengths:
            for count in self.counts:
                frames = [length * codec.strides[0] // stride for stride in codec.strides]
                codec.decode(
                    [np.zeros((count, codes), np.int16) for codes in frames],
                    seeds=[0] * count,
                    first_frames=[0] * count,
                    lengths=[min(1, length), *[length] * (count - 1)],
                )


class StreamingDecoder:
    """One utterance's decoder. `seed` None switches the codec's noise off.

    `look_ahead`: frames that the first chunk waits for; None for as many as make it exact. `trims`:
    leading silence is removed by the caller, who sets `audible` at the first sound. `before`: codes
    `[frames, tokens_per_frame]` that the utterance continues; their samples are not returned.
    """

    def __init__(
        self,
        codec: WindowCodec,
        layout: TokenLayout,
        seed: int | None,
        ramp: Sequence[int] = DEFAULT_RAMP,
        look_ahead: int | None = None,
        trims: bool = False,
        before: NDArray[np.int16] | None = None,
    ) -> None:
        if not ramp or min(ramp) < 1:
            raise ValueError(f"ramp {tuple(ramp)}: expected frames per chunk, each at least 1")
        if look_ahead is not None and look_ahead < 0:
            raise ValueError(f"look_ahead {look_ahead}: expected frames, 0 or more")
        self.codec = codec
        self.layout = layout
        self.seed = seed
        self._ramp = tuple(ramp)
        self._look_ahead = look_ahead
        self._trims = trims
        self.audible = False
        self._ids: list[int] = []
        # Grown by doubling: a row per frame would copy all of them for each.
        # Frames are counted from the first of `before` on, and so are the noise's places.
        self._before = self._whole = self._emitted = 0 if before is None else len(before)
        self._table = np.zeros((self._before + 16, layout.tokens_per_frame), np.int16)
        if before is not None:
            self._table[: self._before] = before
        self._chunks = 0
        self._ended = False

    @property
    def frames(self) -> int:
        """Whole frames received."""
        return self._whole - self._before

    def push(self, ids: Iterable[int]) -> None:
        """Take further audio token ids (without `<audio_end>`). ValueError for an illegal one."""
        assert not self._ended, "push after finish"
        self._ids.extend(ids)
        per_frame = self.layout.tokens_per_frame
        if whole := len(self._ids) // per_frame * per_frame:
            new = self.layout.from_ids(np.array(self._ids[:whole], np.int64))
            end = self._whole + len(new)
            if end > len(self._table):
                grown = np.zeros((max(end, 2 * len(self._table)), per_frame), np.int16)
                grown[: self._whole] = self._table[: self._whole]
                self._table = grown
            self._table[self._whole : end] = new
            self._whole = end
            del self._ids[:whole]

    def finish(self) -> None:
        """No more tokens will come; those of an incomplete last frame are dropped."""
        self._ended = True

    def next_window(self) -> Window | None:
        """The next window whose samples are final, or None while more frames are needed."""
        due = None
        for last in self._ends():
            if self._ended:
                if self._whole > self._emitted:
                    due = self.codec.window(self._emitted, min(last, self._whole), self._whole)
                if last >= self._whole:
                    break
            else:
                window = self._window(last)
                if window.stop > self._whole:
                    break
                due = window
        return due

    def _ends(self) -> Iterator[int]:
        """Where the next window may end: the next chunk's end, and those after it.

        Chunks that are waited for stay alone. Windows end where chunks do, so that those of
        several streams are of few lengths and can be one batch.
        """
        last, chunk = self._emitted, self._chunks
        while True:
            last += self._size(chunk)
            if last - self._emitted > LONGEST_WINDOW and chunk > self._chunks:
                return
            yield last
            if chunk == 0 or self._hurries:
                return
            chunk += 1

    @property
    def _hurries(self) -> bool:
        return self._look_ahead is not None and not self.audible

    def _size(self, chunk: int) -> int:
        return self._ramp[min(chunk, len(self._ramp) - 1)]

    @property
    def needed(self) -> int:
        """Frames that must be there before the next chunk can be decoded, if no end comes first."""
        return self._window(self._emitted + self._size(self._chunks)).stop - self._before

    def _window(self, last: int) -> Window:
        window = self.codec.window(self._emitted, last, None)
        if self._hurries:
            assert self._look_ahead is not None
            block = self.codec.block_frames
            stop = min(window.stop, -(-(last + self._look_ahead) // block) * block)
            window = replace(window, stop=stop)
        return window

    def window_frames(self, window: Window) -> NDArray[np.int16]:
        return self._table[window.start : min(window.stop, self._whole)]

    def accept(self, window: Window, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep the final samples of a decoded window and move on."""
        self.audible |= not self._trims
        per_frame = self.codec.frame_samples
        while self._emitted < window.last:
            self._emitted += self._size(self._chunks)
            self._chunks += 1
        self._emitted = window.last  # the last chunk of an utterance may be shorter
        first = (window.first - window.start) * per_frame
        return samples[first : first + (window.last - window.first) * per_frame]

    def decode(self, ids: Iterable[int]) -> NDArray[np.float32]:
        """Push tokens and return the samples `[n]` that became final, possibly none."""
        self.push(ids)
        return self._drain()

    def flush(self) -> NDArray[np.float32]:
        """Finish and return all remaining samples."""
        self.finish()
        return self._drain()

    def _drain(self) -> NDArray[np.float32]:
        chunks = [NO_SAMPLES]
        while len(samples := decode_ready([self])[0]):
            chunks.append(samples)
        return np.concatenate(chunks)


def decode_ready(
    decoders: Sequence[StreamingDecoder], shapes: WindowShapes | None = None
) -> list[NDArray[np.float32]]:
    """Decode the next window of every stream that has one; streams without one get no samples.

    All decoders must share codec and layout. Windows of equal length form one batch; with `shapes`
    those of lengths that are padded to the same.
    """
    results = [NO_SAMPLES] * len(decoders)
    groups: dict[tuple[int, bool], list[tuple[int, Window]]] = {}
    for index, decoder in enumerate(decoders):
        if window := decoder.next_window():
            length = len(decoder.window_frames(window))
            if shapes is not None:
                length = shapes.length(length)
            groups.setdefault((length, decoder.seed is None), []).append((index, window))
    decoded: list[tuple[int, Window, NDArray[np.float32]]] = []
    for (length, silent), members in groups.items():
        first = decoders[members[0][0]]
        rows = [decoders[index].window_frames(window) for index, window in members]
        seeds = [decoders[index].seed or 0 for index, _ in members]
        starts = [window.start for _, window in members]
        own: list[int] | None = None
        if shapes is not None:
            unused = shapes.count(len(rows)) - len(rows)
            own = [*map(len, rows), *[length] * unused]
            rows = [np.pad(row, ((0, length - len(row)), (0, 0))) for row in rows]
            rows += [np.zeros_like(rows[0])] * unused
            seeds, starts = seeds + [0] * unused, starts + [0] * unused
        stacks = [first.layout.deinterleave(row) for row in rows]
        samples = first.codec.decode(
            [np.stack(level) for level in zip(*stacks, strict=True)],
            seeds=None if silent else seeds,
            first_frames=starts,
            lengths=own,
        ).numpy()
        decoded += [(index, window, samples[row]) for row, (index, window) in enumerate(members)]
    # No stream moves on before all are decoded: after an exception they can be tried again.
    for index, window, samples in decoded:
        results[index] = decoders[index].accept(window, samples)
    return results
