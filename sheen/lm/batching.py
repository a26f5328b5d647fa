"""Packed rows: prompts and codes of several utterances -> one row of tokens.

Owns the bounds of the utterances in a row, the alignment of targets with inputs, the positions that
predict each codebook level, and noise in the inputs. Which utterances share a row is
`sheen.lm.packing`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sheen.codec.layout import TokenLayout
from sheen.codec.transfer import to_device
from sheen.lm.loss import IGNORE_INDEX, Targets


# Not frozen: torch.compile checks every field of a frozen one in every layer, and compiles them
# anew for each number of utterances in a row.
@dataclass(eq=False)
class Segments:
    """The bounds of the utterances in a row: `bounds` `[N + 1]` int32, from 0 to T.

    `lengths` are the same on the host; `longest` is at least the largest of them.
    """

    bounds: Tensor
    lengths: tuple[int, ...]
    longest: int

    @staticmethod
    def of(lengths: list[int]) -> "Segments":
        bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        # A power of two, so that compiled code meets few values.
        return Segments(bounds, tuple(lengths), 1 << (max(lengths) - 1).bit_length())

    def to(self, device: torch.device) -> "Segments":
        return Segments(to_device(self.bounds, device), self.lengths, self.longest)


@dataclass(frozen=True)
class RowForm:
    """What rows of a family contain in addition to prompt, codes and `<audio_end>`."""

    tail: tuple[int, ...] = ()
    """Ids after `<audio_end>`."""
    learned: int = 0
    """The number of a prompt's last ids that are targets, with the tail: engines whose prompt
    ends before `<audio_start>` let the model generate them. 0 with a masked softmax."""


PLAIN = RowForm()


@dataclass(frozen=True)
class Batch:
    """One packed row of utterances end to end, with little padding.

    `input_ids` and `position_ids` are `[1, T]` int64; positions restart with each utterance.
    `segments` bounds the utterances, `targets` are the positions and what they predict; `prompts`
    are the lengths of the utterances' prompts, and of padding. Indices are computed here, on the
    host, so that a device never waits for a count.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Segments
    targets: Targets
    prompts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the utterances, without padding."""
        lengths = self.segments.lengths
        return sum(n for n, prompt in zip(lengths, self.prompts, strict=True) if prompt < n)

    @property
    def labels(self) -> Tensor:
        """`[1, T]` labels for transformers: the inputs that are targets, else IGNORE_INDEX.

        Not valid for a row with history noise, whose inputs differ from its targets.
        """
        at = self.targets.all_positions + 1
        labels = torch.full_like(self.input_ids, IGNORE_INDEX)
        labels[0, at] = self.input_ids[0, at]
        return labels

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            to_device(self.input_ids, device),
            to_device(self.position_ids, device),
            self.segments.to(device),
            self.targets.to(device),
            self.prompts,
        )


def collate(
    prompts: Sequence[Sequence[int] | NDArray[np.int32]],
    frames: Sequence[NDArray[np.int16]],
    layout: TokenLayout,
    pad_id: int,
    pad_to: int = 0,
    given: Sequence[int] = (),
    form: RowForm = PLAIN,
) -> Batch:
    """One row from prompts (ending in `<audio_start>`) and codes `[frames, tokens_per_frame]`.

    `given`: how many first frames of each utterance carry no loss, because they are a reference;
    empty for none. A row shorter than `pad_to` is filled with an utterance of padding without
    labels, so that all rows have the same length. Without utterances, the row is all padding, for a
    rank without work.
    """
    ids: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    controls: list[NDArray[np.int64]] = []
    start, tail = 0, np.array(form.tail, np.int64)
    given = given or [0] * len(prompts)
    for prompt, codes, first in zip(prompts, frames, given, strict=True):
        audio = np.concatenate([layout.to_ids(codes), [layout.end_id]])
        row = np.concatenate([np.asarray(prompt, np.int64), audio, tail])
        ids += [row]
        labels += [np.full(len(row), IGNORE_INDEX)]
        known, end = len(prompt) + first * layout.tokens_per_frame, len(row) - len(tail)
        labels[-1][known:end] = row[known:end]
        if form.learned:
            places = [*range(len(prompt) - form.learned, len(prompt)), *range(end, len(row))]
            controls += [start + np.array(places)]
        start += len(row)
    if padding := max(pad_to - sum(map(len, ids)), 0 if ids else 1):
        ids.append(np.full(padding, pad_id, np.int64))
        labels.append(np.full(padding, IGNORE_INDEX))
    lengths = [len(row) for row in ids]
    of_prompts = [*map(len, prompts), padding][: len(lengths)]
    flat_ids, flat_labels = np.concatenate(ids), np.concatenate(labels)
    check_labels(flat_ids, flat_labels, layout, given)
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        torch.from_numpy(flat_ids)[None],
        torch.from_numpy(positions)[None],
        Segments.of(lengths),
        targets_of(flat_labels, layout, _controls(flat_ids, controls)),
        tuple(of_prompts),
    )


def _controls(
    ids: NDArray[np.int64], places: list[NDArray[np.int64]]
) -> tuple[Tensor, Tensor] | None:
    """See `Targets.controls`; `places` are the positions of the targets."""
    if not places:
        return None
    at = np.concatenate(places)
    return torch.from_numpy(at - 1), torch.from_numpy(ids[at])


NOISY = 0.5
"""Share of the utterances that get history noise; the others are as in decoding."""


def add_history_noise(
    batch: Batch, layout: TokenLayout, share: float, generator: np.random.Generator
) -> Batch:
    """The row with about `share` of the frames of half of its utterances replaced by random codes.

    Whole frames are replaced, because codes of a frame predict each other. Targets are unchanged,
    so that the model must rely more on the text (after NVIDIA's MagpieTTS, which does so in half of
    its batches).
    """
    # The first block is slot 0, so that it has one code per frame.
    first, rows = batch.targets.positions[0].numpy(), batch.targets.rows[0].numpy()
    starts = first[rows > 0] + 1  # row 0 is <audio_end>
    utterances = np.searchsorted(batch.segments.bounds.numpy(), starts, side="right") - 1
    noisy = generator.random(np.count_nonzero(rows == 0)) < NOISY  # padding comes last
    replaced = starts[noisy[utterances] & (generator.random(len(starts)) < share)]
    codes = generator.integers(
        layout.codebook_size, size=(len(replaced), layout.tokens_per_frame), dtype=np.int16
    )
    ids = batch.input_ids.clone()
    at = replaced[:, None] + np.arange(layout.tokens_per_frame)
    ids[0, at.reshape(-1)] = torch.from_numpy(layout.to_ids(codes))
    return replace(batch, input_ids=ids)


def targets_of(
    labels: NDArray[np.int64],
    layout: TokenLayout,
    controls: tuple[Tensor, Tensor] | None = None,
) -> Targets:
    """The targets of a row `[T]` by block: each position predicts the label after it."""
    following = np.append(labels[1:], IGNORE_INDEX)
    positions, rows = [], []
    for block in layout.blocks:
        legal = (following >= block.base) & (following < block.base + layout.codebook_size)
        if block.ends:
            legal |= following == layout.end_id
        at = np.flatnonzero(legal)
        row = following[at] - block.base
        if block.ends:
            row = np.where(following[at] == layout.end_id, 0, row + 1)
        positions.append(torch.from_numpy(at))
        rows.append(torch.from_numpy(row))
    return Targets(positions, rows, tuple(block.level for block in layout.blocks), controls)


def check_labels(
    ids: NDArray[np.int64], labels: NDArray[np.int64], layout: TokenLayout, given: Sequence[int]
) -> None:
    """Assert the alignment of labels: a shift by one is a common and costly error."""
    assert ids.shape == labels.shape, f"{len(ids)} inputs, {len(labels)} labels"
    targets = labels != IGNORE_INDEX
    assert np.array_equal(labels[targets], ids[targets]), "a label differs from its own input"
    # A target follows <audio_start>, a given frame or another target; the last one is <audio_end>.
    first = np.flatnonzero(targets & ~np.append(False, targets[:-1]))
    last = np.flatnonzero(targets & ~np.append(targets[1:], False))
    assert len(first) == len(given), f"{len(first)} stretches of targets, {len(given)} utterances"
    starts = first - 1 - np.array(given, np.int64) * layout.tokens_per_frame
    assert (ids[starts] == layout.start_id).all(), "targets do not follow <audio_start>"
    assert (ids[last] == layout.end_id).all(), "targets do not end in <audio_end>"


def sequence_lengths(
    prompts: Sequence[Sequence[int]],
    offsets: NDArray[np.int64],
    layout: TokenLayout,
    tail: int = 0,
) -> NDArray[np.int64]:
    """Tokens of each utterance's whole sequence: prompt, codes, `<audio_end>` and the tail's."""
    texts = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    lengths: NDArray[np.int64] = texts + np.diff(offsets) * layout.tokens_per_frame + 1 + tail
    return lengths
