"""Which utterances share a row, and which rows an optimizer step has.

Owns the evaluation split, best-fit packing, and the division of rows into optimizer steps. The
split is a function of texts and a seed, and the packing one of lengths, seed and epoch, not of the
number of workers, so that a resumed run has the same rows and all ranks have equally many. Refuses
to cut an utterance, which would teach the model not to emit EOS: one longer than a row must be
skipped before.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray


def is_held_out(text: str, share: float, seed: int) -> bool:
    """Whether an utterance belongs to the evaluation split.

    Decided by a hash of its text and the seed alone: it does not change when rows are added, and
    two rows with the same text are always on the same side.
    """
    return split_hash(text, seed) < share * 2**64


def split_hash(text: str, seed: int) -> int:
    """A number below 2**64: texts with the smallest ones are held out."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


Bins = list[NDArray[np.int64]]
"""The utterances of each row."""
EpochItems = Callable[[int], NDArray[np.int64]]
"""The items to pack in an epoch, by its number."""

FULL = 0.98
"""A row filled less than this is dissolved, and its utterances join the next pool."""
POOL = 64
"""Rows packed together. More rows fill better; fewer keep the order of utterances more random.

At most this many rows are dissolved: if no row can be filled, all would wait for the last pool.
"""
BLUR = 0.3
"""For sorting, lengths are randomly shortened by up to this share: with a pool that holds the whole
corpus, the exact order would put the same utterances together in every epoch."""


def pack(
    lengths: NDArray[np.int64],
    indices: NDArray[np.int64],
    capacity: int,
    order: NDArray[np.float64] | None = None,
) -> Bins:
    """Best-fit decreasing: the longest first, each into the fullest row in which it fits.

    At most `capacity` tokens per row. `order`, if given, replaces the lengths for sorting. Raises
    ValueError for an utterance longer than a row.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # free tokens and number of each row, ascending
    sizes = (lengths if order is None else order)[indices]
    for index in indices[np.argsort(-sizes, kind="stable")].tolist():
        length = int(lengths[index])
        if length > capacity:
            raise ValueError(f"utterance {index} has {length} tokens, a row holds {capacity}")
        at = bisect_left(free, (length, -1))
        if at == len(free):
            left, row = capacity, len(bins)
            bins.append([])
        else:
            left, row = free.pop(at)
        bins[row].append(index)
        insort(free, (left - length, row))
    return [np.array(row, dtype=np.int64) for row in bins]


def plan_epoch(
    lengths: NDArray[np.int64], indices: NDArray[np.int64], capacity: int, seed: int, epoch: int
) -> Bins:
    """The rows of an epoch: utterances are shuffled and packed pool by pool; rows are shuffled."""
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(indices)
    order = lengths * generator.uniform(1.0 - BLUR, 1.0, len(lengths))
    pool = np.cumsum(lengths[shuffled]) // (POOL * capacity)
    pools = np.split(shuffled, np.flatnonzero(np.diff(pool)) + 1)
    bins: Bins = []
    waiting = shuffled[:0]
    for number, fresh in enumerate(pools, start=1):
        rows = pack(lengths, np.concatenate([waiting, fresh]), capacity, order)
        filled = np.array([lengths[row].sum() for row in rows])
        apart = np.zeros(len(rows), dtype=bool)
        if number < len(pools):
            emptiest = np.argsort(filled, kind="stable")[:POOL]
            apart[emptiest] = filled[emptiest] < FULL * capacity
        bins += [row for row, again in zip(rows, apart, strict=True) if not again]
        left = [row for row, again in zip(rows, apart, strict=True) if again]
        waiting = np.concatenate([shuffled[:0], *left])
    return [bins[i] for i in generator.permutation(len(bins))]


def plan_rows(
    lengths: NDArray[np.int64], items: EpochItems, capacity: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of all epochs, without end."""
    for epoch in count():
        yield from plan_epoch(lengths, items(epoch), capacity, seed, epoch)


ALIGNED = 64
"""Rows are padded to a multiple of this, a tile of a GPU's matrix products."""


def padded_length(lengths: NDArray[np.int64], rows: Bins, capacity: int) -> int:
    """The common length of rows: that of the longest one, aligned, at most `capacity`.

    It is less than the capacity if utterances cannot fill a row, as those of over half its length.
    """
    longest = max((int(lengths[row].sum()) for row in rows), default=0)
    return min(capacity, -(-longest // ALIGNED) * ALIGNED)


Step = list[Bins]
"""`step[a][rank]`: the utterances of accumulated row a on a rank; empty after the last row."""


def plan_steps(rows: Bins, world: int, accumulation: int) -> list[Step]:
    """Divide a run's rows into optimizer steps, with equally many rows for every rank.

    The order does not depend on `world`: a step of two ranks has the rows of a step of one rank
    with twice the accumulation. If the last step is not full, its last rows are empty.
    """
    size = world * accumulation
    empty = np.zeros(0, dtype=np.int64)
    padded = rows + [empty] * (-len(rows) % size)
    return [
        [padded[first + a * world : first + (a + 1) * world] for a in range(accumulation)]
        for first in range(0, len(padded), size)
    ]
