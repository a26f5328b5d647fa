"""Choosing tokens: the settings as transformers means them, and draws that are a request's own."""

import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sheen import rng
from sheen.engine.decode_step import ALL_NEEDS
from sheen.engine.sampler import SlotSampler
from sheen.engine.types import REPETITION_WINDOW, Sampling

CPU = torch.device("cpu")
BASE = 1000
STEPS = 4000


def choose(
    sampler: SlotSampler, logits: torch.Tensor, slots: list[int], steps: list[int]
) -> torch.Tensor:
    """Columns `[B]`."""
    ids = sampler.choose(
        logits,
        sampler.settings(slots),
        torch.tensor(steps),
        torch.full((len(slots),), BASE),
    )
    return ids - BASE


def one(sampling: Sampling) -> SlotSampler:
    sampler = SlotSampler(1, STEPS, CPU)
    sampler.set(0, sampling, STEPS)
    return sampler


def frequencies(sampling: Sampling, logits: torch.Tensor, count: int = STEPS) -> torch.Tensor:
    """How often each column is drawn, over the steps of one request."""
    sampler = one(sampling)
    drawn = choose(sampler, logits.expand(count, -1), [0] * count, list(range(count)))
    return torch.bincount(drawn, minlength=len(logits)) / count


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0, 0, 1.0),
        Sampling(0.7, 0, 1.0),
        Sampling(1.3, 5, 1.0),
        Sampling(1.0, 0, 0.8),
        Sampling(1.0, 12, 0.7),
        Sampling(2.0, 1, 0.5),
        Sampling(1.0, 10**12, 0.9),
        Sampling(1.0, 0, 1e-6),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [20, 700])
def test_draws_have_transformers_distribution(sampling: Sampling, rows: int) -> None:
    torch.manual_seed(rows)
    logits = 2.0 * torch.randn(rows)
    expected = TemperatureLogitsWarper(sampling.temperature)(None, logits[None])
    if sampling.top_k:
        expected = TopKLogitsWarper(min(sampling.top_k, rows))(None, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(None, expected)
    shares = expected[0].softmax(-1)
    found = frequencies(sampling, logits)
    assert not found[shares == 0].any()
    # 4,000 draws: five standard deviations of each share, and a draw.
    spread = 5 * (shares * (1 - shares) / 4000).sqrt() + 1 / 4000
    assert ((found - shares).abs() <= spread).all()


def test_the_penalty_is_transformers_over_the_window_and_the_level() -> None:
    torch.manual_seed(0)
    rows, steps = 40, 3 * REPETITION_WINDOW
    sampler = one(Sampling(0.0, repetition_penalty=1.5))
    logits = torch.randn(steps, rows)
    past: list[int] = []
    penalise = RepetitionPenaltyLogitsProcessor(1.5)
    for step in range(steps):
        column = int(choose(sampler, logits[step : step + 1], [0], [step]))
        recent = torch.tensor([past[-REPETITION_WINDOW:]], dtype=torch.long)
        expected = logits[step : step + 1].clone()
        # Column 0 is `<audio_end>`: it is never a thing of the past.
        recent = recent[:, recent[0] > 0]
        expected = penalise(recent, expected) if recent.numel() else expected
        assert column == int(expected.argmax())
        past.append(column)
    # Codes of another level are other tokens: nothing here is penalised.
    other = sampler.choose(
        logits[:1],
        sampler.settings([0]),
        torch.tensor([steps]),
        torch.tensor([BASE + rows]),
    )
    assert int(other) == BASE + rows + int(logits[0].argmax())


def test_a_row_is_drawn_alike_in_any_company() -> None:
    """Also where a neighbour needs all rows sorted, and it only the likeliest."""
    torch.manual_seed(0)
    kinds = [
        Sampling(0.0),
        Sampling(1.0, 0, 1.0, 1),
        Sampling(0.3, 0, 0.9, 2),
        Sampling(1.5, 0, 0.99, 3),
        Sampling(1.0, 40, 1.0, 4),
        Sampling(1.0, 400, 0.9, 5),
        Sampling(0.8, 0, 0.95, 6, 1.4),
    ]
    logits = 3.0 * torch.randn(30, len(kinds), 4097)
    together = SlotSampler(len(kinds), STEPS, CPU)
    apart = [SlotSampler(len(kinds), STEPS, CPU) for _ in kinds]
    for slot, kind in enumerate(kinds):
        together.set(slot, kind, STEPS)
        apart[slot].set(slot, kind, STEPS)
    every = list(range(len(kinds)))
    for step in range(30):
        found = choose(together, logits[step], every, [step] * len(kinds))
        for slot in every:
            alone = choose(apart[slot], logits[step, slot : slot + 1], [slot], [step])
            assert int(alone) == int(found[slot])


def test_the_seed_and_the_step_decide() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 500).expand(50, -1)
    steps = list(range(50))
    first = choose(one(Sampling(1.0, 0, 1.0, 7)), logits, [0] * 50, steps)
    assert torch.equal(choose(one(Sampling(1.0, 0, 1.0, 7)), logits, [0] * 50, steps), first)
    assert not torch.equal(choose(one(Sampling(1.0, 0, 1.0, 8)), logits, [0] * 50, steps), first)
    assert len(first.unique()) > 25


def test_a_slots_draws_are_those_of_the_seed_of_the_request_that_is_there() -> None:
    logits = torch.zeros(1, 1000)  # so that a column says what was drawn
    sampler = SlotSampler(3, 50, CPU)
    for slot, seed, tokens in ((1, 8, 50), (2, 9, 50), (1, 1 << 40, 20), (0, 8, 3)):
        sampler.set(slot, Sampling(1.0, 0, 1.0, seed), tokens)
    for slot, seed, step in ((0, 8, 2), (1, 1 << 40, 0), (1, 1 << 40, 19), (2, 9, 49)):
        drawn = rng.uniform(torch.tensor([seed]), rng.SAMPLING, torch.tensor([step]))
        assert abs(choose(sampler, logits, [slot], [step]) - 1000 * drawn) <= 1


def test_a_struck_out_row_is_never_drawn() -> None:
    logits = torch.zeros(500)
    logits[0] = float("-inf")
    logits[400:] = float("-inf")
    found = frequencies(Sampling(5.0, 0, 1.0), logits)
    assert found[0] == 0
    assert not found[400:].any()


def test_a_new_request_at_a_slot_has_no_past() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    sampler = one(Sampling(0.0, repetition_penalty=5.0))
    best = int(choose(sampler, logits, [0], [0]))
    assert int(choose(sampler, logits, [0], [1])) != best
    sampler.set(0, Sampling(0.0, repetition_penalty=5.0), STEPS)
    assert int(choose(sampler, logits, [0], [0])) == best


def test_uniform_draws_leave_both_ends_out() -> None:
    # Every value that the mixer can give, as its highest bits alone count.
    ends = torch.tensor([0, (1 << 23) - 1], dtype=torch.float32)
    low, high = ((ends + 0.5) * 2.0**-23).tolist()
    assert low > 0
    assert high < 1
    values = rng.uniform(torch.arange(8), rng.SAMPLING, torch.arange(20_000))
    assert values.dtype == torch.float32
    assert values.min() > 0
    assert values.max() < 1
    assert abs(values.mean().item() - 0.5) < 0.005


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("seed", -1), ("seed", 1 << 63),
     ("repetition_penalty", 0.0), ("repetition_penalty", 6.0)],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})  # type: ignore[arg-type]


def test_what_no_request_asks_for_changes_no_token_where_it_is_computed() -> None:
    """A captured step computes all that there is: penalties of 1, and the likeliest row too."""
    generator = torch.Generator().manual_seed(0)
    kinds = [Sampling(0.7, seed=1), Sampling(1.0, 0, 1.0, seed=2), Sampling(0.3, 20, 0.9, seed=3)]
    samplers = [SlotSampler(3, 100, CPU) for _ in range(2)]
    for sampler in samplers:
        for slot, kind in enumerate(kinds):
            sampler.set(slot, kind, 100)
    slots, bases = torch.arange(3), torch.full((3,), BASE)
    for step in range(100):
        logits = 4 * torch.randn(3, 300, generator=generator)
        steps = torch.full((3,), step)
        plain, whole = (
            sampler.choose(logits, sampler.settings_on_device(slots, needs), steps, bases)
            for sampler, needs in zip(
                samplers, (samplers[0].needs(range(3)), ALL_NEEDS), strict=True
            )
        )
        assert plain.tolist() == whole.tolist()
