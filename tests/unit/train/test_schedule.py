"""The learning rate of a step."""

from itertools import pairwise

import pytest

from sheen.train.learning.settings import Schedule, learning_rate


def rates(schedule: Schedule, warmup: int, total: int, share: float = 0.2) -> list[float]:
    return [learning_rate(step, 2.0, warmup, total, schedule, share) for step in range(total)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("warmup", [0, 1, 10])
def test_a_rate_rises_to_its_peak_and_falls_to_a_tenth(schedule: Schedule, warmup: int) -> None:
    values = rates(schedule, warmup, 100)
    assert values[:warmup] == pytest.approx([2.0 * (step + 1) / warmup for step in range(warmup)])
    assert max(values) == pytest.approx(2.0)
    assert values[warmup] == pytest.approx(2.0), "no step between warm-up and the peak"
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    assert 0.2 < values[-1] < 0.3
    assert learning_rate(100, 2.0, warmup, 100, schedule) == pytest.approx(0.2)


def test_cosine_is_half_way_down_at_half_time() -> None:
    assert learning_rate(60, 2.0, 20, 100) == pytest.approx(2.0 * 0.55)


def test_wsd_stays_at_the_peak_and_then_falls_linearly() -> None:
    values = rates("wsd", 10, 100, share=0.3)
    assert values[10:71] == pytest.approx([2.0] * 61)
    falls = [before - now for before, now in pairwise(values[70:])]
    assert falls == pytest.approx([2.0 * 0.9 / 30] * 29)


def test_wsd_can_be_made_longer_until_it_decays_and_cosine_cannot() -> None:
    assert rates("wsd", 10, 100)[:80] == rates("wsd", 10, 200)[:80]
    assert rates("cosine", 10, 100)[11:] != rates("cosine", 10, 200)[11:100]


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (5, 1), (5, 5), (100, 6)])
def test_short_runs_have_rates_too(schedule: Schedule, warmup: int, total: int) -> None:
    assert all(0.0 < rate <= 2.0 for rate in rates(schedule, warmup, total))
