"""Sequences and batches: prompts and codes -> padded token tensors with labels.

Owns the alignment of labels with inputs, the plan of which utterances share a batch, and the
evaluation split. Everything is a function of lengths, texts and a seed, so that a run that resumes
sees the batches it would have seen. Utterances over the length limit are left out and counted,
never cut: a cut one would teach the model not to stop.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sheen.core.loss import IGNORE_INDEX
from sheen.core.tokens import TokenLayout


@dataclass(frozen=True)
class Batch:
    """`input_ids` and `labels`, both `[B, T]` int64 and aligned: label t names input t.

    Rows are padded on the right. Attention is causal, so no target sees a pad and no mask is
    needed.
    """

    input_ids: Tensor
    labels: Tensor


def collate(
    prompts: Sequence[Sequence[int] | NDArray[np.int32]],
    frames: Sequence[NDArray[np.int16]],
    layout: TokenLayout,
    pad_id: int,
) -> Batch:
    """One batch from prompts (ending in `<audio_start>`) and codes `[frames, tokens_per_frame]`."""
    rows = [
        np.concatenate([np.asarray(prompt), layout.to_ids(codes), [layout.end_id]])
        for prompt, codes in zip(prompts, frames, strict=True)
    ]
    longest = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORE_INDEX)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.from_numpy(row)
        first = len(prompts[index])
        labels[index, first : len(row)] = input_ids[index, first : len(row)]
    batch = Batch(input_ids, labels)
    check_batch(batch, layout)
    return batch


def check_batch(batch: Batch, layout: TokenLayout) -> None:
    """Assert what training relies on; a shifted label has cost other projects whole runs."""
    inputs, labels = batch.input_ids, batch.labels
    assert inputs.shape == labels.shape, f"inputs {inputs.shape}, labels {labels.shape}"
    targets = labels != IGNORE_INDEX
    assert torch.equal(labels[targets], inputs[targets]), "a label differs from its own input"
    # A target follows <audio_start> or another target, and the last one is <audio_end>.
    first = targets & ~torch.roll(targets, 1, dims=1)
    last = targets & ~torch.nn.functional.pad(targets[:, 1:], (0, 1))
    assert bool((first.sum(1) == 1).all()), "a row's targets are not one stretch"
    before = torch.roll(inputs, 1, dims=1)[first]
    assert bool((before == layout.start_id).all()), "targets do not follow <audio_start>"
    assert bool((inputs[last] == layout.end_id).all()), "targets do not end in <audio_end>"


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


def plan_batches(
    lengths: NDArray[np.int64], indices: NDArray[np.int64], budget: int
) -> list[NDArray[np.int64]]:
    """Cut `indices` into batches of similar length, at most `budget` padded tokens each.

    A single utterance longer than the budget gets a batch of its own.
    """
    batches: list[NDArray[np.int64]] = []
    current: list[int] = []
    for index in indices[np.argsort(lengths[indices], kind="stable")]:
        if current and lengths[index] * (len(current) + 1) > budget:
            batches.append(np.array(current))
            current = []
        current.append(int(index))
    if current:
        batches.append(np.array(current))
    return batches


def plan_epoch(
    lengths: NDArray[np.int64],
    indices: NDArray[np.int64],
    budget: int,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """An epoch's batches, in order.

    Utterances are shuffled and sorted by length within pools of about 50 batches, which keeps
    padding low without tying the same neighbours together in every epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(indices)
    pool = max(1, 50 * budget // max(1, int(lengths[indices].mean())))
    batches = [
        batch
        for start in range(0, len(shuffled), pool)
        for batch in plan_batches(lengths, shuffled[start : start + pool], budget)
    ]
    return [batches[i] for i in generator.permutation(len(batches))]


Step = list[list[NDArray[np.int64]]]
"""`step[a][rank]`: the utterances of accumulated batch a on a rank."""


def plan_steps(batches: list[NDArray[np.int64]], world: int, accumulation: int) -> list[Step]:
    """Cut a run's batches into optimizer steps: every rank takes equally many of each.

    The order does not depend on `world`: two ranks see together what one sees with twice the
    accumulation. When the last step is not full it takes batches from the front again.
    """
    size = world * accumulation
    padded = batches + [batches[i % len(batches)] for i in range(-len(batches) % size)]
    return [
        [padded[first + a * world : first + (a + 1) * world] for a in range(accumulation)]
        for first in range(0, len(padded), size)
    ]
