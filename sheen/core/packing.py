"""The plan of a run: which utterances share a packed row, and which rows an optimizer step.

Owns bins. A plan is a function of lengths, seed and epoch alone, never of the number of workers,
so that a resumed run sees the rows it would have seen and every rank takes equally many. Refuses
to cut an utterance: one longer than a row must have been left out before.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Bins = list[NDArray[np.int64]]
"""Utterances by row."""

FULL = 0.98
"""A row filled less than this is taken apart, and its utterances wait for the next pool."""
POOL = 64
"""Rows packed together. More fill better; fewer leave the order of utterances more random.

No more than these are taken apart either: where lengths fill no row, all would wait for the end.
"""
BLUR = 0.3
"""Lengths are ordered as if they were shorter by up to this share: where a pool holds all there is,
exact order would put the same utterances together in every epoch."""


def pack(
    lengths: NDArray[np.int64],
    indices: NDArray[np.int64],
    capacity: int,
    order: NDArray[np.float64] | None = None,
) -> Bins:
    """Best-fit decreasing: the longest first, each into the fullest row that it still fits in.

    At most `capacity` tokens a row. `order`, where given, says instead of the lengths which comes
    first. Raises ValueError for an utterance that fits in no row.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is left of each row and which, ascending
    sizes = (lengths if order is None else order)[indices]
    for index in indices[np.argsort(-sizes, kind="stable")].tolist():
        length = int(lengths[index])
        if length > capacity:
            raise ValueError(f"utterance {index} has {length} tokens, a row holds {capacity}")
        at = bisect_left(room, (length, -1))
        if at == len(room):
            left, row = capacity, len(bins)
            bins.append([])
        else:
            left, row = room.pop(at)
        bins[row].append(index)
        insort(room, (left - length, row))
    return [np.array(row, dtype=np.int64) for row in bins]


def plan_epoch(
    lengths: NDArray[np.int64], indices: NDArray[np.int64], capacity: int, seed: int, epoch: int
) -> Bins:
    """An epoch's rows, in order: utterances shuffled, packed pool by pool, rows shuffled."""
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
    lengths: NDArray[np.int64], indices: NDArray[np.int64], capacity: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    """The rows of epoch after epoch, without end."""
    epoch = 0
    while True:
        yield from plan_epoch(lengths, indices, capacity, seed, epoch)
        epoch += 1


Step = list[Bins]
"""`step[a][rank]`: the utterances of accumulated row a on a rank; none where rows ran out."""


def plan_steps(rows: Bins, world: int, accumulation: int) -> list[Step]:
    """Cut a run's rows into optimizer steps: every rank takes equally many of each.

    The order does not depend on `world`: two ranks see together what one sees with twice the
    accumulation. When the last step is not full its last rows are empty, and nothing is seen twice.
    """
    size = world * accumulation
    empty = np.zeros(0, dtype=np.int64)
    padded = rows + [empty] * (-len(rows) % size)
    return [
        [padded[first + a * world : first + (a + 1) * world] for a in range(accumulation)]
        for first in range(0, len(padded), size)
    ]
