"""Where a run stands in its data, and which steps are left.

Owns the position of a run as the count of rows it has used, which holds for any number of workers.
Another number keeps the rows of a step where it can, and says what changes where it cannot.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sheen.core.packing import Step, plan_epoch, plan_rows, plan_steps


@dataclass(frozen=True)
class Position:
    """After `step` optimizer steps: `rows` used, the last steps of `rows_per_step` rows each."""

    step: int
    rows: int
    rows_per_step: int


@dataclass(frozen=True)
class Plan:
    """The steps left. `notes` say what another number of workers changed."""

    steps: list[Step]
    total: int
    rows_per_step: int
    notes: list[str]


def plan_run(
    lengths: NDArray[np.int64],
    train: NDArray[np.int64],
    *,
    capacity: int,
    seed: int,
    epochs: int,
    max_steps: int | None,
    world: int,
    accumulation: int,
    done: Position | None,
) -> Plan:
    """What is left of a run, from lengths and seed alone; `max_steps` replaces `epochs`."""
    size = world * accumulation
    notes = []
    if done is not None and done.rows_per_step != size:
        accumulation = max(1, round(done.rows_per_step / world))
        size = world * accumulation
        notes = [_note(done.rows_per_step, size, world, accumulation)]
    step, used = (done.step, done.rows) if done else (0, 0)
    if max_steps is None:
        rows = [
            row
            for epoch in range(epochs)
            for row in plan_epoch(lengths, train, capacity, seed, epoch)
        ][used:]
    else:
        wanted = used + max(0, max_steps - step) * size
        rows = list(islice(plan_rows(lengths, train, capacity, seed), used, wanted))
    steps = plan_steps(rows, world, accumulation)
    return Plan(steps, step + len(steps), size, notes)


def _note(before: int, now: int, world: int, accumulation: int) -> str:
    if before == now:
        return (
            f"resumed with {world} workers and {accumulation} rows each: a step still has {now} "
            "rows, the same ones; sums are taken in another order, so last digits differ"
        )
    return (
        f"resumed with {world} workers and {accumulation} rows each: a step now has {now} rows "
        f"instead of {before}. The data goes on where it stopped; the learning rate stays as "
        "configured"
    )
