"""Sampling the next token among the rows that are legal at a slot.

Owns the repetition penalty, temperature, top-k, top-p and the draw. All requests of a step are
sampled at once, each with its own settings; a draw is a function of the request's seed and its step
(`sheen.rng`), and rows are computed independently, so that a request gets the same tokens whatever
else runs. Takes logits of legal rows only, so that an illegal token cannot be chosen.

The order is that of transformers: penalty, temperature, top-k, top-p. Top-p thus acts on the
probabilities after temperature and top-k: it keeps the fewest of the likeliest rows whose sum
reaches `top_p`, and always the likeliest one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sheen import rng
from sheen.engine.types import LARGEST, Sampling

GUESSES = (16, 64, 256)
"""Numbers of likeliest rows to sort, in order: more are sorted only for requests that were not
decided by fewer."""


@dataclass(frozen=True)
class Needs:
    """Operations that at least one request of a step needs; others are not computed."""

    draws: bool
    likeliest: bool
    penalties: bool


@dataclass(frozen=True)
class RowSettings:
    """The slots of rows of logits `[B, R]` and their settings, valid until another request starts
    at one of them. `whole`: rows without top-k and top-p; `cut`: the others; both None where the
    host does not examine them."""

    needs: Needs
    slots: Tensor
    temperature: Tensor
    greedy: Tensor
    top_k: Tensor | None
    """None if no row has one."""
    top_p: Tensor
    penalty: Tensor
    window: Tensor
    reach: int | None = None
    """The longest window; None where the host does not examine it, and all tokens are read."""
    whole: Tensor | None = None
    cut: Tensor | None = None


class SlotSampler:
    """The settings, the draws and the recent tokens of the requests at all slots, on the device."""

    def __init__(self, slots: int, max_tokens: int, device: torch.device) -> None:
        self._device = device
        self._settings: dict[int, Sampling] = {}
        self._numbers = torch.ones(slots, 5, device=device)
        self._uniforms = torch.zeros(slots, max_tokens, device=device)
        self._history = torch.full((slots, max_tokens), -1, device=device)
        self._places = torch.arange(max_tokens, device=device)

    def set(self, slot: int, sampling: Sampling, tokens: int) -> None:
        """Start a request of up to `tokens` tokens at `slot`."""
        self._settings[slot] = sampling
        numbers = [
            sampling.temperature,
            float(min(sampling.top_k, LARGEST)),
            sampling.top_p,
            sampling.repetition_penalty,
            float(sampling.reach),
        ]
        self._numbers[slot] = torch.tensor(numbers, device=self._device)
        if sampling.temperature > 0:
            # All at once: the draws of one step take as many calls, some fifty, as those of all.
            seeds = torch.tensor([sampling.seed], device=self._device)
            steps = torch.arange(tokens, device=self._device)
            self._uniforms[slot, :tokens] = rng.uniform(seeds, rng.SAMPLING, steps)[0]

    def needs(self, slots: Iterable[int]) -> Needs:
        settings = [self._settings[slot] for slot in slots]
        return Needs(
            any(s.temperature > 0 for s in settings),
            any(s.temperature == 0 for s in settings),
            any(s.repetition_penalty != 1 for s in settings),
        )

    def settings(self, slots: Sequence[int]) -> RowSettings:
        """The settings of rows of logits that belong to these slots."""
        found = self.settings_on_device(self._tensor(slots), self.needs(slots))
        if self._device.type != "cpu":  # asking whether a row is decided would make the host wait
            return found
        kinds = [self._settings[slot] for slot in slots]
        whole = [kind.top_k == 0 and kind.top_p == 1 for kind in kinds]
        return replace(
            found,
            top_k=found.top_k if any(kind.top_k for kind in kinds) else None,
            whole=self._tensor([row for row, all_ in enumerate(whole) if all_]),
            cut=self._tensor([row for row, all_ in enumerate(whole) if not all_]),
            reach=max(kind.reach for kind in kinds if kind.repetition_penalty != 1)
            if found.needs.penalties
            else None,
        )

    def settings_on_device(self, slots: Tensor, needs: Needs) -> RowSettings:
        """The same for a CUDA graph, without any decision on the host."""
        temperature, top_k, top_p, penalty, window = self._numbers[slots].T
        return RowSettings(
            needs=needs,
            slots=slots,
            temperature=temperature[:, None].clamp(min=1e-5),
            greedy=temperature == 0,
            top_k=top_k.long(),
            top_p=top_p,
            penalty=penalty[:, None],
            window=window[:, None],
        )

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)

    def choose(
        self,
        logits: Tensor,
        settings: RowSettings,
        steps: Tensor,
        bases: Tensor,
        active: Tensor | None = None,
    ) -> Tensor:
        """Token ids `[B]` for logits `[B, R]` of rows with these settings.

        Column c of a row is the id `bases[b] + c`; `steps` `[B]` count each request's tokens.
        Rows that are not `active` get any id, and leave no trace.
        """
        slots, needs = settings.slots, settings.needs
        if needs.penalties:
            logits = self._penalized(logits, settings, steps[:, None], bases[:, None])
        columns = logits.argmax(-1) if needs.likeliest else None
        if needs.draws:
            # Row by row; exp over the flat tensor would round by where in it a row lies.
            shares = (logits / settings.temperature).softmax(-1)
            drawn = _draw(shares, settings, self._uniforms[slots, steps])
            columns = drawn if columns is None else torch.where(settings.greedy, columns, drawn)
        assert columns is not None
        ids = bases + columns
        if needs.penalties:
            place = slots, steps
            # A slot idle in this step may have a request whose prompt has just been read.
            kept = ids if active is None else torch.where(active, ids, self._history[place])
            self._history[place] = kept
        return ids

    def _penalized(
        self, logits: Tensor, settings: RowSettings, steps: Tensor, bases: Tensor
    ) -> Tensor:
        """`steps` and `bases` are `[B, 1]`."""
        places = self._places
        if settings.reach is not None and settings.reach < len(places):
            places = steps - 1 - places[: settings.reach]
            past = self._history[settings.slots[:, None], places.clamp(min=0)]
        else:
            past = self._history[settings.slots]
        # Other places hold an earlier request's tokens of later steps.
        seen = (places >= 0) & (places < steps) & (places >= steps - settings.window)
        columns = past - bases
        # Column 0 is `<audio_end>` or unused, never a past token; other blocks are out of range.
        mine = seen & (columns > 0) & (columns < logits.shape[1])
        columns = torch.where(mine, columns, 0)
        scores = logits.gather(1, columns)
        penalty = settings.penalty
        changed = torch.where(scores > 0, scores / penalty, scores * penalty)
        return logits.scatter(1, columns, torch.where(mine, changed, logits[:, :1]))


def _draw(shares: Tensor, settings: RowSettings, uniform: Tensor) -> Tensor:
    """Columns `[B]` drawn from `shares` `[B, R]`, which sum to one.

    Rows without top-k and top-p need no sorting. Each other row uses the first guess that suffices
    for it, independently of the other rows.
    """
    count = shares.shape[1]
    if settings.whole is None or settings.cut is None:
        assert settings.top_k is not None
        drawn = _draw_from_all(shares, uniform)
        values, order = shares.sort(-1, True)
        rank, _ = _draw_sorted(values, settings.top_k, settings.top_p, uniform)
        whole = (settings.top_k == 0) & (settings.top_p == 1)
        return torch.where(whole, drawn, order.gather(1, rank[:, None])[:, 0])
    if not len(settings.cut):
        return _draw_from_all(shares, uniform)
    drawn = torch.zeros_like(settings.slots)
    if len(settings.whole):
        drawn[settings.whole] = _draw_from_all(shares[settings.whole], uniform[settings.whole])
    left = settings.cut  # rows that are not decided yet
    for guess in (*(guess for guess in GUESSES if guess < count), count):
        every = len(left) == len(shares)
        part, top_p, draws = (t if every else t[left] for t in (shares, settings.top_p, uniform))
        top_k = None if settings.top_k is None else settings.top_k[left]
        values, order = part.sort(-1, True) if guess == count else part.topk(guess)
        rank, decided = _draw_sorted(values, top_k, top_p, draws)
        columns = order.gather(1, rank[:, None])[:, 0]
        if every and bool(decided.all()):
            return columns
        drawn[left] = columns
        left = left[~decided]
        if not len(left):
            break
    return drawn


def _draw_from_all(shares: Tensor, uniform: Tensor) -> Tensor:
    mass = shares.cumsum(-1)
    return (mass <= uniform[:, None] * mass[:, -1:]).sum(-1)


def _draw_sorted(
    values: Tensor, top_k: Tensor | None, top_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Ranks `[B]`, and whether the likeliest shares `values` `[B, K]` were enough to know them.

    Without a `top_k`, each row has a `top_p` below 1.
    """
    count = values.shape[1]
    mass = values.cumsum(-1)
    if top_k is None:
        nucleus = top_p
        last = (mass[:, :-1] < nucleus[:, None]).sum(-1)
        decided = mass[:, -1] >= nucleus
    else:
        limit = torch.where(top_k > 0, top_k.clamp(max=count), count)
        after_k = mass.gather(1, limit[:, None] - 1)[:, 0]
        nucleus = top_p * torch.where(top_k > 0, after_k, 1.0)
        # Ranks before which less than the nucleus lies, and always the first.
        kept = 1 + (mass[:, :-1] < nucleus[:, None]).sum(-1)
        last = torch.minimum(torch.where(top_p < 1, kept, count), limit) - 1
        decided = torch.where(top_k > 0, top_k <= count, mass[:, -1] >= nucleus)
    target = uniform[:, None] * mass.gather(1, last[:, None])
    return torch.minimum((mass <= target).sum(-1), last), decided
