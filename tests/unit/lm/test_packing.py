"""The plan of a run: nothing lost, nothing twice, the same for any number of workers."""

from itertools import combinations
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheen.lm import packing
from sheen.lm.packing import Bins, Step, is_held_out, pack, plan_epoch, plan_steps
from sheen.train.data import Plan, Position, plan_run

CAPACITY = 100

some_lengths = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=60).map(np.array)


def speech_lengths(count: int) -> np.ndarray:
    """Sequence lengths as a corpus of read sentences has them: 1 to 25 s at 82 tokens a second."""
    seconds = np.random.default_rng(0).gamma(3.0, 3.0, count).clip(1.0, 25.0)
    return 60 + (seconds * 82).astype(np.int64)


def utterances(rows: Bins) -> list[int]:
    return [int(index) for row in rows for index in row]


def seen(steps: list[Step]) -> list[int]:
    """The utterances of all ranks, in order."""
    return [index for step in steps for ranks in step for index in utterances(ranks)]


def rows_used(steps: list[Step]) -> int:
    return sum(len(row) > 0 for step in steps for ranks in step for row in ranks)


@given(some_lengths, st.integers(0, 3))
def test_rows_hold_every_utterance_once_and_none_overflows(lengths: np.ndarray, skip: int) -> None:
    indices = np.arange(len(lengths))[skip:]
    rows = pack(lengths, indices, CAPACITY)
    assert sorted(utterances(rows)) == indices.tolist()
    filled = sorted(int(lengths[row].sum()) for row in rows)
    assert all(0 < tokens <= CAPACITY for tokens in filled)
    assert len(filled) < 2 or filled[0] + filled[1] > CAPACITY, "two rows would fit in one"


@given(some_lengths, st.integers(0, 5), st.integers(0, 5), st.sampled_from([1, 2, 64]))
def test_an_epoch_holds_every_utterance_once(
    lengths: np.ndarray, seed: int, epoch: int, pool: int
) -> None:
    indices = np.arange(0, len(lengths), 2)
    with patch.object(packing, "POOL", pool):
        rows = plan_epoch(lengths, indices, CAPACITY, seed, epoch)
    assert sorted(utterances(rows)) == indices.tolist()
    assert all(lengths[row].sum() <= CAPACITY for row in rows)


def test_nothing_to_train_on_is_an_empty_epoch() -> None:
    assert plan_epoch(np.array([5, 6]), np.zeros(0, np.int64), CAPACITY, 0, 0) == []


def test_epochs_are_the_same_again_and_differ_from_each_other() -> None:
    lengths = speech_lengths(500)

    def plan(seed: int, epoch: int) -> list[list[int]]:
        return [row.tolist() for row in plan_epoch(lengths, np.arange(500), 8192, seed, epoch)]

    assert plan(0, 0) == plan(0, 0)
    different = [plan(0, 0), plan(0, 1), plan(1, 0), plan(1, 1)]
    assert len({str(rows) for rows in different}) == 4
    # Other neighbours in a row, not only another order of the same rows.
    first, second = (
        {pair for row in rows for pair in combinations(sorted(row), 2)} for rows in different[:2]
    )
    assert len(first & second) < 0.3 * len(first)


@pytest.mark.parametrize("capacity", [2112, 4096, 8192, 65536])
def test_rows_are_nearly_full(capacity: int) -> None:
    lengths = speech_lengths(4000)
    rows = plan_epoch(lengths, np.arange(4000), capacity, 0, 0)
    full = lengths.sum() / capacity
    assert full / len(rows) >= 0.97
    assert len(rows) <= full / 0.99 + 1, "and what is lost is not by the row"


def test_lengths_do_not_follow_the_order_of_rows() -> None:
    lengths = speech_lengths(4000)
    rows = plan_epoch(lengths, np.arange(4000), 8192, 0, 0)
    means = [lengths[row].mean() for row in rows]
    assert abs(np.corrcoef(np.arange(len(rows)), means)[0, 1]) < 0.15


def test_lengths_that_fill_no_row_do_not_wait_for_the_end() -> None:
    """They would all be packed again with every pool: hours for a million utterances."""
    lengths = np.random.default_rng(0).integers(55, 60, 3000)
    sizes = []

    def watched(lengths: np.ndarray, indices: np.ndarray, *rest: Any) -> Bins:
        sizes.append(len(indices))
        return pack(lengths, indices, *rest)

    with patch.object(packing, "pack", watched):
        rows = plan_epoch(lengths, np.arange(3000), CAPACITY, 0, 0)
    assert len(rows) == 3000
    assert max(sizes) <= 4 * packing.POOL


def test_an_utterance_longer_than_a_row_is_named() -> None:
    with pytest.raises(ValueError, match="utterance 1 has 101 tokens, a row holds 100"):
        pack(np.array([7, 101, 3]), np.arange(3), CAPACITY)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (2, 1), (1, 2), (2, 3), (8, 4)])
def test_ranks_share_a_run_without_changing_it(world: int, accumulation: int) -> None:
    steps = plan_steps([np.array([i]) for i in range(19)], world, accumulation)
    assert all(len(step) == accumulation for step in steps)
    assert all(len(ranks) == world for step in steps for ranks in step)
    assert seen(steps) == list(range(19)), "the order is that of one worker, and nothing is twice"
    filled = [len(row) for step in steps for ranks in step for row in ranks]
    assert filled == sorted(filled, reverse=True), "rows without utterances come last"
    assert len(filled) < 19 + world * accumulation


def run(
    lengths: np.ndarray, world: int, accumulation: int, done: Position | None = None, **changes: int
) -> Plan:
    length: dict[str, int | None] = {"epochs": 2, "max_steps": None}
    length |= changes
    return plan_run(
        lengths,
        lambda epoch: np.arange(len(lengths)),
        capacity=CAPACITY,
        seed=0,
        world=world,
        accumulation=accumulation,
        done=done,
        **length,
    )


def after(plan: Plan, steps: int, before: Position | None = None) -> Position:
    """The position that a run saves after so many steps of a plan."""
    step, rows = (before.step, before.rows) if before else (0, 0)
    done = plan.steps[:steps]
    return Position(step + len(done), rows + rows_used(done), plan.rows_per_step)


@given(some_lengths, st.integers(1, 4), st.integers(1, 3), st.sampled_from([None, 1, 7]), st.data())
def test_a_resumed_run_has_exactly_the_steps_that_were_left(
    lengths: np.ndarray, world: int, accumulation: int, max_steps: int | None, data: st.DataObject
) -> None:
    limit = {} if max_steps is None else {"max_steps": max_steps}
    whole = run(lengths, world, accumulation, **limit)
    at = data.draw(st.integers(0, whole.total))
    rest = run(lengths, world, accumulation, after(whole, at), **limit)
    assert rest.total == whole.total == len(whole.steps)
    assert rest.notes == []
    assert rest.rows_per_step == world * accumulation
    assert str(rest.steps) == str(whole.steps[at:])


@given(
    some_lengths,
    st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_other_numbers_of_workers_lose_and_repeat_nothing(
    lengths: np.ndarray, worlds: list[tuple[int, int]], accumulation: int
) -> None:
    """A run that is killed again and again, and goes on with other numbers of workers each time."""
    done, order = None, []
    for world, steps in worlds:
        plan = run(lengths, world, accumulation, done)
        assert all(len(ranks) == world for step in plan.steps for ranks in step)
        order += seen(plan.steps[:steps])
        done = after(plan, steps, done)
    plan = run(lengths, 3, accumulation, done)
    order += seen(plan.steps)
    assert order == seen(run(lengths, 1, 1).steps), "two epochs, in the order of one worker"
    assert plan.total == done.step + len(plan.steps)


def test_the_notes_say_what_another_number_of_workers_changed() -> None:
    lengths = np.full(240, 50)
    whole = run(lengths, 2, 3)
    done = after(whole, 5)
    assert done == Position(5, 30, 6)
    (same,) = (kept := run(lengths, 3, 3, done)).notes
    assert "3 workers and 2 rows each" in same
    assert "the same 6 rows" in same
    assert kept.rows_per_step == 6
    assert kept.total == whole.total
    assert [seen([step]) for step in kept.steps] == [seen([step]) for step in whole.steps[5:]]
    (other,) = (changed := run(lengths, 4, 3, done)).notes
    assert "4 workers and 2 rows each: a step now has 8 rows instead of 6" in other
    assert changed.rows_per_step == 8
    counted = run(lengths, 4, 3, done, max_steps=20)
    assert (counted.total, len(counted.steps)) == (20, 15), "steps are counted, whatever their size"
    assert seen(counted.steps)[:60] == seen(changed.steps)[:60]
    (many,) = run(lengths, 16, 3, done).notes
    assert "16 workers and 1 rows each: a step now has 16 rows instead of 6" in many


def test_epochs_end_a_run_unless_steps_are_given() -> None:
    lengths = np.full(10, 50)  # five rows an epoch
    assert run(lengths, 1, 2, epochs=1).total == 3
    assert run(lengths, 1, 2, epochs=2).total == 5, "epochs share a step"
    assert sorted(seen(run(lengths, 1, 2, epochs=3).steps)) == sorted([*range(10)] * 3)
    longer = run(lengths, 1, 2, epochs=1, max_steps=10)
    assert longer.total == 10
    assert sorted(seen(longer.steps)) == sorted([*range(10)] * 4), "epoch after epoch"
    assert run(lengths, 1, 2, epochs=9, max_steps=1).total == 1
    over = run(lengths, 1, 2, after(longer, 10), max_steps=10)
    assert (over.steps, over.total) == ([], 10)
    # A run that is made longer goes on as if it had been planned so.
    more = run(lengths, 1, 2, after(longer, 10), max_steps=12)
    assert str(more.steps) == str(run(lengths, 1, 2, max_steps=12).steps[10:])


def test_the_split_is_stable_and_keeps_equal_texts_together() -> None:
    texts = [f"text {i}" for i in range(2000)]
    held = {text for text in texts if is_held_out(text, 0.1, 0)}
    assert 140 < len(held) < 260
    # A function of text and seed alone: more rows, or the same text again, move nothing.
    assert held == {text for text in reversed(texts * 2) if is_held_out(text, 0.1, 0)}
    assert held != {text for text in texts if is_held_out(text, 0.1, 1)}
    assert held < {text for text in texts if is_held_out(text, 0.2, 0)}
    assert not any(is_held_out(text, 0.0, 0) for text in texts)
