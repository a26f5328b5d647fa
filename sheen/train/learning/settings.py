"""The named settings of a learner, and what they are in a step: learning rate, weights of losses.

Owns the refusal of weights that do not fit the codec, or of steps without weights. Imports no
torch: the command lines read it for their flags.
"""

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "wsd"]
Strategy = Literal["ddp", "fsdp"]

DECAY_SHARE = 0.2
"""Share of the steps in which the "wsd" schedule decays."""


def learning_rate(
    step: int,
    peak: float,
    warmup: int,
    total: int,
    schedule: Schedule = "cosine",
    decay_share: float = DECAY_SHARE,
) -> float:
    """Linear warm-up to `peak`, then down to a tenth of it at `total`.

    "cosine" goes down all the way; "wsd" (warm-up, stable, decay: Hu et al. 2024, MiniCPM) stays at
    the peak and falls linearly over the last `decay_share` of the steps, so that a run can be made
    longer without having been planned so.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "wsd":
        decay = max(1.0, decay_share * total)
        return peak * (1.0 - 0.9 * max(0.0, 1.0 - (total - step) / decay))
    progress = (step - warmup) / max(1, total - warmup)
    return peak * (0.55 + 0.45 * math.cos(math.pi * min(1.0, progress)))


def level_weights(
    given: Sequence[float] | None, steps: int | None, step: int, levels: int
) -> list[float]:
    """The weights of the levels in a step: `given` for the first `steps` (None: all), else equal
    ones."""
    if given is None or (steps is not None and step >= steps):
        return [1.0] * levels
    return list(given)


def guide_weight(given: float, steps: int | None, step: int) -> float:
    """The weight of guided attention in a step: `given` for the first `steps` (None: all), else
    0."""
    return given if steps is None or step < steps else 0.0


def check_guide_weight(given: float, steps: int | None) -> None:
    """Raise ValueError for steps without a weight."""
    if steps is not None and not given:
        raise ValueError("--guided-attention-steps needs --guided-attention")


def check_level_weights(given: Sequence[float] | None, steps: int | None, levels: int) -> None:
    """Raise ValueError unless there is one weight for each level, and one of them is above 0."""
    if given is None:
        if steps is not None:
            raise ValueError("--level-weights-steps needs --level-weights")
    elif len(given) != levels or not any(given):
        raise ValueError(
            f"--level-weights {','.join(f'{weight:g}' for weight in given)}: expected {levels} "
            "weights, one for each level of the codec, coarse first, and one of them above 0"
        )
