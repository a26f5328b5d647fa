"""The learning rate of a step, and weights that are refused before a worker starts."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.example import CODEC, ROOT, load_script
from sheen.train.learning.settings import Schedule, learning_rate

LINE = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'

main = load_script(ROOT / "jobs" / "train.py").main


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--level-weights", "3,1"], "--level-weights 3,1: expected 3 weights, one for each level"),
        (["--level-weights", "1,1,1,1"], "--level-weights 1,1,1,1: expected 3 weights"),
        (["--level-weights", "0,0,0"], "--level-weights 0,0,0: .* one of them above 0"),
        (["--level-weights", "3,-1,1"], "level_weights.*greater than or equal to 0"),
        (["--level-weights-steps", "9"], "--level-weights-steps needs --level-weights"),
        (["--guided-attention-steps", "9"], "--guided-attention-steps needs --guided-attention"),
        (["--guided-attention", "-1"], "guided_attention.*greater than or equal to 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    lines, output = tmp_path / "codes.jsonl", tmp_path / "out"
    lines.write_text(LINE, "utf-8")
    given = {"--data": lines, "--output": output, "--model": base, "--codec": CODEC}
    words = [str(word) for pair in given.items() for word in pair]
    assert main([*words, *flags]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, said), said
    assert not output.exists()
