"""The few shapes of batches of codec windows on a GPU, and meeting all of them at the start.

There each new shape of a convolution costs its library a plan, of milliseconds, some twenty times
in a codec, in the thread that all streams wait for. Windows have any length up to that of an
utterance's end, and come in any number. Here they are padded to the lengths that streams have while
they run, and to a few for streams that fell behind: mostly at the ends of utterances. Batches are
padded to few numbers: five windows to eight, nine to twelve, thirteen to sixteen. That is more
arithmetic, but less than the launches of a second batch take. Owns those shapes. No sample changes:
the codec computes each row as if it were as long as its own frames. A CPU plans nothing, and pads
nothing. Knows nothing of streams but the sizes of their chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sheen.codec.snac import WindowCodec

LONGEST = 36
"""Most frames of several chunks in one window: other streams wait meanwhile."""
COUNTS = 1, 2, 4, 8, 12, 16
"""Windows of a batch. With up to four a GPU waits for its kernels' launches all the same."""
SETTLED = 8
"""Chunks after those of the ramp, by which windows have all of their context."""


@dataclass(frozen=True)
class WindowShapes:
    """Batches are padded to one of `counts` windows of one of `lengths` frames, both ascending."""

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
        size, longest = 2 * ramp[-1], max(LONGEST, *ramp)
        while size < longest:
            note(first, size)
            size *= 2
        for place in range(block):  # where in a block a window begins decides its length
            note(first + place, longest)
        counts = [count for count in COUNTS if count < most]
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
