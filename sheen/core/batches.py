"""Sequences and packed rows: prompts and codes -> one row of tokens with labels.

Owns the alignment of labels with inputs, the positions that predict each codebook level, and the
evaluation split, which is a function of texts and a seed. An utterance is never cut: a cut one
would teach the model not to stop.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sheen.core.attention import Segments
from sheen.core.loss import IGNORE_INDEX, Targets
from sheen.core.tokens import TokenLayout


@dataclass(frozen=True)
class Batch:
    """One packed row of utterances end to end, with next to no padding.

    `input_ids`, `labels` and `position_ids` are `[1, T]` int64; label t names input t, positions
    begin anew with each utterance. `segments` bounds the utterances, `targets` says which positions
    predict what. Indices are made here, on the host, so that no device waits for a count.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    segments: Segments
    targets: Targets

    def to(self, device: torch.device) -> "Batch":
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.labels,
            self.position_ids.to(device, non_blocking=True),
            self.segments.to(device),
            self.targets.to(device),
        )


def collate(
    prompts: Sequence[Sequence[int] | NDArray[np.int32]],
    frames: Sequence[NDArray[np.int16]],
    layout: TokenLayout,
    pad_id: int,
    pad_to: int = 0,
) -> Batch:
    """One row from prompts (ending in `<audio_start>`) and codes `[frames, tokens_per_frame]`.

    A row shorter than `pad_to` is filled by one more utterance of pads without labels: compiled
    code wants one shape. No utterances give a row that is all padding, for a rank without work.
    """
    ids: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    for prompt, codes in zip(prompts, frames, strict=True):
        audio = np.concatenate([layout.to_ids(codes), [layout.end_id]])
        ids += [np.concatenate([np.asarray(prompt, np.int64), audio])]
        labels += [np.concatenate([np.full(len(prompt), IGNORE_INDEX), audio])]
    if padding := max(pad_to - sum(map(len, ids)), 0 if ids else 1):
        ids.append(np.full(padding, pad_id, np.int64))
        labels.append(np.full(padding, IGNORE_INDEX))
    lengths = [len(row) for row in ids]
    flat_ids, flat_labels = np.concatenate(ids), np.concatenate(labels)
    check_labels(flat_ids, flat_labels, layout, utterances=len(prompts))
    positions = np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        torch.from_numpy(flat_ids)[None],
        torch.from_numpy(flat_labels)[None],
        torch.from_numpy(positions)[None],
        Segments.of(lengths),
        targets_of(flat_labels, layout),
    )


def targets_of(labels: NDArray[np.int64], layout: TokenLayout) -> Targets:
    """What each position of a row `[T]` predicts, by level: the label that follows it."""
    following = np.append(labels[1:], IGNORE_INDEX)
    positions, rows = [], []
    for level in range(layout.levels):
        legal = layout.legal(layout.slots.index((level, 0)))
        at = np.flatnonzero((following >= legal.start) & (following < legal.stop))
        positions.append(torch.from_numpy(at))
        rows.append(torch.from_numpy(following[at] - legal.start))
    return Targets(positions, rows)


def check_labels(
    ids: NDArray[np.int64], labels: NDArray[np.int64], layout: TokenLayout, utterances: int
) -> None:
    """Assert what training relies on; a shifted label has cost other projects whole runs."""
    assert ids.shape == labels.shape, f"{len(ids)} inputs, {len(labels)} labels"
    targets = labels != IGNORE_INDEX
    assert np.array_equal(labels[targets], ids[targets]), "a label differs from its own input"
    # A target follows <audio_start> or another target, and the last one is <audio_end>.
    first = np.flatnonzero(targets & ~np.append(False, targets[:-1]))
    last = np.flatnonzero(targets & ~np.append(targets[1:], False))
    assert len(first) == utterances, f"{len(first)} stretches of targets, {utterances} utterances"
    assert (ids[first - 1] == layout.start_id).all(), "targets do not follow <audio_start>"
    assert (ids[last] == layout.end_id).all(), "targets do not end in <audio_end>"


def sequence_lengths(
    prompts: Sequence[Sequence[int]], offsets: NDArray[np.int64], layout: TokenLayout
) -> NDArray[np.int64]:
    """Tokens of each utterance's whole sequence: prompt, codes and `<audio_end>`."""
    texts = np.array([len(prompt) for prompt in prompts], dtype=np.int64)
    return texts + np.diff(offsets) * layout.tokens_per_frame + 1


def is_held_out(text: str, share: float, seed: int) -> bool:
    """Whether an utterance belongs to the evaluation split.

    Decided by a hash of its text and the seed alone: it stays where it is when rows are added, and
    two rows with the same text are never on different sides.
    """
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
