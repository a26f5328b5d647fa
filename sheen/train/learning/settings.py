"""The named settings of a learner, and the learning rate of a step.

Imports no torch: the command lines read it for their flags.
"""

import math
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
