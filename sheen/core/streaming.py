"""The streaming decoder: tokens in, PCM out, while the utterance is still being generated.

Owns which frames may be decoded when, and which of the decoded samples are final. Every sample it
emits is the sample that decoding the whole utterance gives there (within float rounding), the
first and the last frame included, whatever the chunks: each window carries the context that the
codec's receptive field needs, and noise is a function of position. Windows of several streams are
decoded in one batch.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from sheen.core.codec import Codec, Window
from sheen.core.tokens import TokenLayout

DEFAULT_RAMP = (1, 2, 4, 8, 12)
"""Frames of the first chunks; the last value repeats. Small first for an early start, then large,
because each window decodes up to 6 frames of context again."""

NO_SAMPLES = np.zeros(0, np.float32)


class StreamingDecoder:
    """One utterance's decoder. `seed` None switches the codec's noise off."""

    def __init__(
        self,
        codec: Codec,
        layout: TokenLayout,
        seed: int | None,
        ramp: Sequence[int] = DEFAULT_RAMP,
    ) -> None:
        if not ramp or min(ramp) < 1:
            raise ValueError(f"ramp {tuple(ramp)}: expected frames per chunk, each at least 1")
        self.codec = codec
        self.layout = layout
        self.seed = seed
        self._ramp = tuple(ramp)
        self._ids: list[int] = []
        self._frames = np.zeros((0, layout.tokens_per_frame), np.int16)
        self._emitted = 0
        self._chunks = 0
        self._ended = False

    @property
    def frames(self) -> int:
        """Whole frames received."""
        return len(self._frames)

    def push(self, ids: Iterable[int]) -> None:
        """Take further audio token ids (without `<audio_end>`). ValueError for an illegal one."""
        assert not self._ended, "push after finish"
        self._ids.extend(ids)
        whole = len(self._ids) // self.layout.tokens_per_frame * self.layout.tokens_per_frame
        if whole:
            new = self.layout.from_ids(np.array(self._ids[:whole], np.int64))
            self._frames = np.concatenate([self._frames, new])
            del self._ids[:whole]

    def finish(self) -> None:
        """No more tokens will come; those of an incomplete last frame are dropped."""
        self._ended = True

    def next_window(self) -> Window | None:
        """The next window whose samples are final, or None while more frames are needed."""
        hop = self._ramp[min(self._chunks, len(self._ramp) - 1)]
        last = self._emitted + hop
        if self._ended:
            last = min(last, self.frames)
            if last == self._emitted:
                return None
            return self.codec.window(self._emitted, last, self.frames)
        window = self.codec.window(self._emitted, last, None)
        return window if window.stop <= self.frames else None

    def window_frames(self, window: Window) -> NDArray[np.int16]:
        return self._frames[window.start : window.stop]

    def accept(self, window: Window, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Keep the final samples of a decoded window and move on."""
        per_frame = self.codec.frame_samples
        self._emitted = window.last
        self._chunks += 1
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
        pieces = [NO_SAMPLES]
        while len(samples := decode_ready([self])[0]):
            pieces.append(samples)
        return np.concatenate(pieces)


def decode_ready(decoders: Sequence[StreamingDecoder]) -> list[NDArray[np.float32]]:
    """Decode the next window of every stream that has one; streams without one get no samples.

    All decoders must share codec and layout. Windows of equal length form one batch.
    """
    results = [NO_SAMPLES] * len(decoders)
    groups: dict[tuple[int, bool], list[tuple[int, Window]]] = {}
    for index, decoder in enumerate(decoders):
        if window := decoder.next_window():
            length = len(decoder.window_frames(window))
            groups.setdefault((length, decoder.seed is None), []).append((index, window))
    for (_, silent), members in groups.items():
        first = decoders[members[0][0]]
        stacks = [
            first.layout.deinterleave(decoders[index].window_frames(window))
            for index, window in members
        ]
        samples = first.codec.decode(
            [np.stack(level) for level in zip(*stacks, strict=True)],
            seeds=None if silent else [decoders[index].seed or 0 for index, _ in members],
            first_frames=[window.start for _, window in members],
        ).numpy()
        for row, (index, window) in enumerate(members):
            results[index] = decoders[index].accept(window, samples[row])
    return results
