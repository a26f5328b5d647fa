"""One request's settings for sampling.

Owns their defaults and limits. Knows nothing of tensors, so that the API's schema can be built
where torch isn't imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

REPETITION_WINDOW = 70
"""Generated tokens that the repetition penalty looks back at by default: ten frames at 24 kHz, 0.85
s. Over all tokens it would suppress sounds that speech needs."""
LARGEST = 1 << 20
"""Largest count of rows or tokens: more than any table or request has, and exact in float32."""


@dataclass(frozen=True)
class Sampling:
    """One request's settings. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides positive logits, and multiplies negative ones, of token ids among
    the request's last `repetition_window` generated tokens, or all of them; 1 is off. The prompt
    does not count. In a layout with ids by slot, ids repeat less often than in one with ids by
    level, so that the same penalty has a weaker effect.
    """

    temperature: float = 0.3
    top_k: int = 0
    top_p: float = 0.95
    seed: int = 0
    repetition_penalty: float = 1.0
    repetition_window: int | Literal["all"] = REPETITION_WINDOW

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
        if self.repetition_window != "all" and self.repetition_window < 1:
            raise ValueError(
                f"repetition_window {self.repetition_window}: expected 1 or more tokens, or all"
            )

    @property
    def reach(self) -> int:
        """The number of past tokens that the penalty counts."""
        window = self.repetition_window
        return LARGEST if window == "all" else min(window, LARGEST)

    @classmethod
    def of(cls, own: Mapping[str, Any], seed: int = 0, **asked: Any) -> "Sampling":
        """The settings in `asked` that are not None, else a model's `own`, else the defaults."""
        given = {name: value for name, value in asked.items() if value is not None}
        return cls(seed=seed, **{**own, **given})
