"""The token layout: the one place that knows how codec codes become token ids.

Owns the order of a frame's codes in a sequence, the ids of `<audio_start>` and `<audio_end>`, the
id of every code, and which rows of the output head are legal at a slot. Everything is computed
from the codec's codebook size and strides, the family, and the first of the tokens that are added
to the tokenizer. Refuses codes whose lengths or values the codec could not have made. Knows nothing
about models or text.

The order of a frame's codes is the same in both families; their ids are not:

- `sheen`: `<audio_start>, <audio_end>, level 0, level 1, ...`, so that the rows legal where a frame
  may begin (`<audio_end>` and level 0) are one contiguous slice, and so is every level.
- `orpheus`, of the checkpoints that follow canopyai/Orpheus-TTS: `<custom_token_i>` for i from 0.
  Ten controls come first, 1 and 2 of which are `<audio_start>` and `<audio_end>`, then a block of
  codes for each slot of the frame, and one token without a use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AUDIO_START = "<audio_start>"
AUDIO_END = "<audio_end>"

Family = Literal["sheen", "orpheus"]
CUSTOM_TOKEN = "<custom_token_{}>"
CONTROLS = 10
"""Custom tokens before the first code."""

Codes = list[NDArray[np.int16]]
"""One utterance's codes: one array per level, coarse first, `[frames * codes_per_frame[level]]`."""

Softmax = Literal["masked", "full"]
"""What a model's logits are normalized over in training: the rows that are legal at a slot, so that
every decoder must mask the others, or the whole vocabulary, so that none needs to."""


@dataclass(frozen=True)
class Block:
    """The ids of a level's codes at one slot or several: code c is `base + c`.

    Column c of a block is the code c - 1. Column 0 is `<audio_end>` where `ends` (at slot 0), and
    stands for nothing elsewhere.
    """

    level: int
    base: int
    ends: bool


@dataclass(frozen=True)
class TokenLayout:
    """Codes <-> token ids for one codec and one tokenizer.

    `strides` are the codec's `vq_strides`: latents per code at each level, coarse first
    (24 kHz SNAC: 4, 2, 1; 32 and 44 kHz: 8, 4, 2, 1). `first_id` is the id of the first token that
    the layout adds: `<audio_start>`, or `<custom_token_0>` in the family `orpheus`.
    """

    first_id: int
    codebook_size: int
    strides: tuple[int, ...]
    family: Family = "sheen"

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
        return self.first_id + (self.family == "orpheus")

    @property
    def end_id(self) -> int:
        return self.start_id + 1

    @property
    def size(self) -> int:
        """Token ids that the layout adds: its specials, and every code of every block."""
        specials = 2 if self.family == "sheen" else CONTROLS + 1
        return specials + len(self.blocks) * self.codebook_size

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """In id order: one for each level, or one for each slot in the family `orpheus`."""
        levels: Sequence[int] = range(self.levels)
        first = self.first_id + 2
        if self.family == "orpheus":
            levels = [level for level, _ in self.slots]
            first = self.first_id + CONTROLS
        return tuple(
            Block(level, first + number * self.codebook_size, ends=number == 0)
            for number, level in enumerate(levels)
        )

    @cached_property
    def slot_blocks(self) -> tuple[int, ...]:
        """The number of the block of each slot."""
        if self.family == "orpheus":
            return tuple(range(self.tokens_per_frame))
        return tuple(level for level, _ in self.slots)

    def columns(self, block: Block) -> Sequence[int]:
        """The ids of a block's columns; in the family `sheen` they are a range."""
        ids = range(block.base - 1, block.base + self.codebook_size)
        return [self.end_id, *ids[1:]] if block.ends and ids[0] != self.end_id else ids

    def legal(self, slot: int) -> Sequence[int]:
        """Ids that may stand at a slot: its block's codes, and `<audio_end>` before slot 0."""
        block = self.blocks[self.slot_blocks[slot]]
        return self.columns(block)[0 if slot == 0 else 1 :]

    def token_names(self) -> list[str]:
        """The strings of the added tokens, in id order."""
        if self.family == "orpheus":
            return [CUSTOM_TOKEN.format(number) for number in range(self.size)]
        return [AUDIO_START, AUDIO_END] + [
            f"<snac_{level}_{code}>"
            for level in range(self.levels)
            for code in range(self.codebook_size)
        ]

    @cached_property
    def slot_bases(self) -> NDArray[np.int64]:
        """`[tokens_per_frame]`: the id of code 0 at each slot."""
        return np.array([self.blocks[block].base for block in self.slot_blocks], dtype=np.int64)

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
                f"expected a code of level {self.slots[slot][0]}, "
                f"{self.slot_bases[slot]} to {self.slot_bases[slot] + self.codebook_size - 1}"
            )
        return codes.astype(np.int16)
