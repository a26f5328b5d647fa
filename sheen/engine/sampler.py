"""Choosing the next token among the rows legal at a slot.

Owns the repetition penalty, temperature, top-k, top-p and the draw. All requests of a step are
chosen at once, each with its own settings; a draw is a function of the request's seed and its step
(`sheen.rng`), and no arithmetic of one row depends on another, so a request gets the same
tokens whatever else runs. Takes logits of the legal rows only: an illegal token cannot be chosen
because it is not there.

The order is transformers': penalty, temperature, top-k, top-p. So top-p acts on the mass that
temperature and top-k leave: it keeps the fewest of the likeliest rows that hold `top_p` of it, and
always the likeliest.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sheen import rng

REPETITION_WINDOW = 70
"""Tokens of a request's past that its repetition penalty looks at: ten frames at 24 kHz, 0.85 s.
Over the whole past it would take away sounds that speech cannot do without."""

GUESSES = (16, 64, 256)
"""How many of the likeliest rows are sorted at first. Mostly they hold what decides; the others are
sorted only for requests for which they do not."""


@dataclass(frozen=True)
class Sampling:
    """One request's settings. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides the positive logits, and multiplies the negative, of codes that the
    request drew at the same codebook level within REPETITION_WINDOW; 1 is off.
    """

    temperature: float = 0.3
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 5.0:
            raise ValueError(f"temperature {self.temperature}: expected 0 to 5")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: expected 0 (off) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p}: expected above 0, at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed}: expected 0 to 2**63 - 1")
        if not 0.5 <= self.repetition_penalty <= 5.0:
            raise ValueError(
                f"repetition_penalty {self.repetition_penalty}: expected 0.5 to 5 (1 is off)"
            )


@dataclass(frozen=True)
class Needs:
    """What at least one of the requests of a step asks for; what none does is not computed."""

    draws: bool
    likeliest: bool
    penalties: bool


class SlotSampler:
    """The settings and the recent tokens of the requests at all slots, on the device."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self._device = device
        self._settings: dict[int, Sampling] = {}
        self._numbers = torch.ones(slots, 4, device=device)
        self._seeds = torch.zeros(slots, dtype=torch.long, device=device)
        self._history = torch.full((slots, REPETITION_WINDOW), -1, device=device)
        # Asking whether all rows are decided would make a GPU's host wait.
        self._guesses = GUESSES if device.type == "cpu" else ()

    def set(self, slot: int, sampling: Sampling) -> None:
        """A new request is at `slot`."""
        self._settings[slot] = sampling
        numbers = [
            sampling.temperature,
            # Beyond any table's rows nothing changes, and float32 counts to 2**24.
            float(min(sampling.top_k, 1 << 20)),
            sampling.top_p,
            sampling.repetition_penalty,
        ]
        self._numbers[slot] = torch.tensor(numbers, device=self._device)
        self._seeds[slot] = sampling.seed
        self._history[slot] = -1

    def needs(self, slots: Iterable[int]) -> Needs:
        settings = [self._settings[slot] for slot in slots]
        return Needs(
            any(s.temperature > 0 for s in settings),
            any(s.temperature == 0 for s in settings),
            any(s.repetition_penalty != 1 for s in settings),
        )

    def choose(
        self,
        logits: Tensor,
        slots: Tensor,
        steps: Tensor,
        bases: Tensor,
        needs: Needs,
        active: Tensor | None = None,
    ) -> Tensor:
        """Token ids `[B]` for logits `[B, R]` of the requests at `slots` `[B]`.

        Column c of a row is the token `bases[b] + c`; `steps` `[B]` count each request's tokens.
        Rows that are not `active` get any id, and leave no trace.
        """
        temperature, top_k, top_p, penalty = self._numbers[slots].T
        if needs.penalties:
            logits = self._penalised(logits, slots, bases, penalty[:, None])
        columns = logits.argmax(-1) if needs.likeliest else None
        if needs.draws:
            uniform = rng.uniform(self._seeds[slots], rng.SAMPLING, steps[:, None])[:, 0]
            # Row by row; exp over the flat tensor would round by where in it a row lies.
            shares = (logits / temperature[:, None].clamp(min=1e-5)).softmax(-1)
            drawn = _draw(shares, top_k.long(), top_p, uniform, self._guesses)
            columns = drawn if columns is None else torch.where(temperature == 0, columns, drawn)
        assert columns is not None
        ids = bases + columns
        place = slots, steps % REPETITION_WINDOW
        # A slot that is idle in this step may have a request whose prompt has just been read.
        kept = ids if active is None else torch.where(active, ids, self._history[place])
        self._history[place] = kept
        return ids

    def _penalised(self, logits: Tensor, slots: Tensor, bases: Tensor, penalty: Tensor) -> Tensor:
        columns = self._history[slots] - bases[:, None]
        # Column 0 is `<audio_end>` or nothing, never a past token; other levels lie outside.
        mine = (columns > 0) & (columns < logits.shape[1])
        columns = torch.where(mine, columns, 0)
        scores = logits.gather(1, columns)
        changed = torch.where(scores > 0, scores / penalty, scores * penalty)
        return logits.scatter(1, columns, torch.where(mine, changed, logits[:, :1]))


def _draw(
    shares: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor, guesses: tuple[int, ...]
) -> Tensor:
    """Columns `[B]` drawn from `shares` `[B, R]`, which sum to one.

    A row from which nothing is left out needs no order. Each other row takes the first guess that
    decides it, whatever its neighbours need.
    """
    rows = shares.shape[1]
    whole = (top_k == 0) & (top_p == 1)
    if not guesses:
        drawn = _draw_from_all(shares, uniform)
        values, order = shares.sort(-1, True)
        rank, _ = _draw_sorted(values, top_k, top_p, uniform)
        return torch.where(whole, drawn, order.gather(1, rank[:, None])[:, 0])
    drawn = torch.zeros_like(top_k)
    if len(unsorted := whole.nonzero()[:, 0]):
        drawn[unsorted] = _draw_from_all(shares[unsorted], uniform[unsorted])
    left = (~whole).nonzero()[:, 0]  # rows that are not decided yet
    for count in (*(guess for guess in guesses if guess < rows), rows):
        if not len(left):
            break
        part = shares[left]
        values, order = part.sort(-1, True) if count == rows else part.topk(count)
        rank, decided = _draw_sorted(values, top_k[left], top_p[left], uniform[left])
        drawn[left] = order.gather(1, rank[:, None])[:, 0]
        left = left[~decided]
    return drawn


def _draw_from_all(shares: Tensor, uniform: Tensor) -> Tensor:
    mass = shares.cumsum(-1)
    return (mass <= uniform[:, None] * mass[:, -1:]).sum(-1)


def _draw_sorted(
    values: Tensor, top_k: Tensor, top_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks `[B]`, and whether the likeliest shares `values` `[B, K]` were enough to know them."""
    count = values.shape[1]
    mass = values.cumsum(-1)
    limit = torch.where(top_k > 0, top_k.clamp(max=count), count)
    after_k = mass.gather(1, limit[:, None] - 1)[:, 0]
    nucleus = top_p * torch.where(top_k > 0, after_k, 1.0)
    # Ranks before which less than the nucleus lies, and always the first.
    kept = 1 + (mass[:, :-1] < nucleus[:, None]).sum(-1)
    kept = torch.minimum(torch.where(top_p < 1, kept, count), limit)
    target = uniform * mass.gather(1, kept[:, None] - 1)[:, 0]
    rank = torch.minimum((mass <= target[:, None]).sum(-1), kept - 1)
    return rank, torch.where(top_k > 0, top_k <= count, mass[:, -1] >= nucleus)
