"""The token layout: the one place that knows how codec codes become token ids.

Owns the order of a frame's codes in a sequence, the ids of `<audio_start>` and `<audio_end>`, the
id of every code, and which rows of the output head are legal at a slot. Everything is computed
from the codec's codebook size and strides, and from the first free id of the tokenizer. Refuses
codes whose lengths or values the codec could not have made. Knows nothing about models or text.

Rows are ordered `<audio_start>, <audio_end>, level 0, level 1, ...`, so that the rows legal where
a frame may begin (`<audio_end>` and level 0) are one contiguous slice, and so is every level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AUDIO_START = "<audio_start>"
AUDIO_END = "<audio_end>"

Codes = list[NDArray[np.int16]]
"""One utterance's codes: one array per level, coarse first, `[frames * codes_per_frame[level]]`."""

Softmax = Literal["masked", "full"]
"""What a model's logits are normalised over in training: the rows that are legal at a slot, so that
every decoder must mask the others, or the whole vocabulary, so that none needs to."""


@dataclass(frozen=True)
class TokenLayout:
    """Codes <-> token ids for one codec and one tokenizer.

    `strides` are the codec's `vq_strides`: latents per code at each level, coarse first
    (24 kHz SNAC: 4, 2, 1; 32 and 44 kHz: 8, 4, 2, 1). `first_id` is the id of `<audio_start>`.
    """

    first_id: int
    codebook_size: int
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 < self.codebook_size <= 1 << 15:
            raise ValueError(f"codebook_size {self.codebook_size}: expected 1..32768 (int16 codes)")
        if not self.strides or self.strides[-1] != 1:
            raise ValueError(f"strides {self.strides}: expected a last stride of 1")
        for coarse, fine in zip(self.strides, self.strides[1:], strict=False):
            if coarse % fine:
                raise ValueError(f"strides {self.strides}: each must be a multiple of the next")

    @property
    def levels(self) -> int:
        return len(self.strides)

    @cached_property
    def codes_per_frame(self) -> tuple[int, ...]:
        """Codes of each level in one coarse frame (24 kHz: 1, 2, 4)."""
        return tuple(self.strides[0] // stride for stride in self.strides)

    @cached_property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """`(level, index within the frame)` of each slot, in sequence order.

        Depth first: a code is followed by the finer codes of the same stretch of time. For
        strides 4, 2, 1 the levels are 0,1,2,2,1,2,2, the order that the field uses.
        """
        order: list[tuple[int, int]] = []

        def visit(level: int, index: int) -> None:
            order.append((level, index))
            if level + 1 < self.levels:
                fanout = self.strides[level] // self.strides[level + 1]
                for child in range(fanout):
                    visit(level + 1, index * fanout + child)

        visit(0, 0)
        return tuple(order)

    @property
    def tokens_per_frame(self) -> int:
        return len(self.slots)

    @property
    def start_id(self) -> int:
        return self.first_id

    @property
    def end_id(self) -> int:
        return self.first_id + 1

    @property
    def size(self) -> int:
        """Token ids that the layout adds: two specials and every code of every level."""
        return 2 + self.levels * self.codebook_size

    def level_base(self, level: int) -> int:
        """The id of code 0 of a level."""
        return self.first_id + 2 + level * self.codebook_size

    def legal(self, slot: int) -> range:
        """Ids that may stand at a slot: its level's codes, and `<audio_end>` before slot 0."""
        level, _ = self.slots[slot]
        base = self.level_base(level)
        return range(self.end_id if slot == 0 else base, base + self.codebook_size)

    def token_names(self) -> list[str]:
        """The strings of the added tokens, in id order."""
        return [AUDIO_START, AUDIO_END] + [
            f"<snac_{level}_{code}>"
            for level in range(self.levels)
            for code in range(self.codebook_size)
        ]

    @cached_property
    def slot_bases(self) -> NDArray[np.int64]:
        """`[tokens_per_frame]`: the id of code 0 at each slot."""
        return np.array([self.level_base(level) for level, _ in self.slots], dtype=np.int64)

    def check(self, codes: Sequence[Sequence[int] | NDArray[np.int16]]) -> str | None:
        """What is wrong with one utterance's codes, in words, or None."""
        if len(codes) != self.levels:
            return f"{len(codes)} levels of codes, expected {self.levels}"
        frames, rest = divmod(len(codes[0]), self.codes_per_frame[0])
        expected = [frames * per_frame for per_frame in self.codes_per_frame]
        lengths = [len(level) for level in codes]
        if rest or lengths != expected:
            return f"level lengths {lengths}, expected {expected} for {frames} frames"
        if frames == 0:
            return "no codes"
        for level, values in enumerate(codes):
            array = np.asarray(values)
            if array.min() < 0 or array.max() >= self.codebook_size:
                return (
                    f"level {level} holds a code outside 0..{self.codebook_size - 1} "
                    f"(smallest {array.min()}, largest {array.max()})"
                )
        return None

    def interleave(self, codes: Codes) -> NDArray[np.int16]:
        """Codes per level -> `[frames, tokens_per_frame]`, each row in slot order.

        Levels may be several utterances' codes laid end to end: frames never mix.
        """
        if problem := self.check(codes):
            raise ValueError(f"these are not codes of this codec: {problem}")
        frames = len(codes[0]) // self.codes_per_frame[0]
        grids = [level.reshape(frames, -1) for level in codes]
        return np.stack([grids[level][:, index] for level, index in self.slots], axis=1)

    def deinterleave(self, frames: NDArray[np.int16]) -> Codes:
        """`[frames, tokens_per_frame]` -> codes per level; the inverse of `interleave`."""
        codes: Codes = []
        for wanted in range(self.levels):
            columns = [slot for slot, (level, _) in enumerate(self.slots) if level == wanted]
            codes.append(np.ascontiguousarray(frames[:, columns]).reshape(-1))
        return codes

    def to_ids(self, frames: NDArray[np.int16]) -> NDArray[np.int64]:
        """`[frames, tokens_per_frame]` codes -> `[frames * tokens_per_frame]` token ids."""
        return (frames + self.slot_bases).reshape(-1)

    def from_ids(self, ids: NDArray[np.int64]) -> NDArray[np.int16]:
        """Whole frames of token ids -> `[frames, tokens_per_frame]` codes.

        Raises ValueError for a broken frame or an id that is not legal at its slot.
        """
        if len(ids) % self.tokens_per_frame:
            raise ValueError(
                f"{len(ids)} ids are not whole frames of {self.tokens_per_frame} tokens"
            )
        codes = ids.reshape(-1, self.tokens_per_frame) - self.slot_bases
        wrong = np.argwhere((codes < 0) | (codes >= self.codebook_size))
        if len(wrong):
            frame, slot = wrong[0]
            raise ValueError(
                f"id {ids[frame * self.tokens_per_frame + slot]} at frame {frame}, slot {slot}: "
                f"expected a code of level {self.slots[slot][0]}"
            )
        return codes.astype(np.int16)
