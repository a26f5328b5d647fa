"""Choosing the next token among the rows legal at a slot.

Owns temperature, top-k, top-p and the draw. All requests of a batch are chosen at once, each with
its own settings; a draw is a function of the request's seed and its step (`sheen.core.draws`), so
a request gets the same tokens whatever else runs. Takes logits of the legal rows only: an illegal
token cannot be chosen because it is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sheen.core import draws


@dataclass(frozen=True)
class Sampling:
    """One request's settings. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 0.3
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 5.0:
            raise ValueError(f"temperature {self.temperature}: expected 0 to 5")
        if self.top_k < 0:
            raise ValueError(f"top_k {self.top_k}: expected 0 (off) or more")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p {self.top_p}: expected above 0, at most 1")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed}: expected 0 to 2**63 - 1")


class Sampler:
    """The settings of a batch of requests, as tensors on the device."""

    def __init__(self, settings: Sequence[Sampling], device: torch.device) -> None:
        def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        self._temperature = column([s.temperature for s in settings], torch.float32)[:, None]
        self._top_k = column([s.top_k for s in settings], torch.long)[:, None]
        self._top_p = column([s.top_p for s in settings], torch.float32)[:, None]
        self._seeds = column([s.seed for s in settings], torch.long)
        self._filters = any(s.top_k > 0 or s.top_p < 1.0 for s in settings)

    def choose(self, logits: Tensor, step: int) -> Tensor:
        """Indices `[B]` into the legal rows, from their logits `[B, R]`, at a request's `step`."""
        logits = logits.float()
        rows = logits.shape[1]
        scaled = logits / self._temperature.clamp(min=1e-5)
        if self._filters:
            scaled = self._filter(scaled)
        # Positions do not depend on R: one step never shares a draw with the next.
        positions = step * (1 << 16) + torch.arange(rows, device=logits.device)
        drawn = (scaled + draws.gumbel(self._seeds, draws.SAMPLING, positions)).argmax(-1)
        return torch.where(self._temperature[:, 0] == 0.0, logits.argmax(-1), drawn)

    def _filter(self, scaled: Tensor) -> Tensor:
        ordered, order = scaled.sort(dim=-1, descending=True)
        rank = torch.arange(scaled.shape[1], device=scaled.device)[None]
        probabilities = ordered.softmax(-1)
        # Mass before a row: the most likely row always stays, whatever top_p is.
        before = probabilities.cumsum(-1) - probabilities
        drop = (before >= self._top_p) & (self._top_p < 1.0)
        drop |= (rank >= self._top_k) & (self._top_k > 0)
        return scaled.masked_fill(drop.scatter(1, order, drop), float("-inf"))
