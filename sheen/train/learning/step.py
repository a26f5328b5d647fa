"""The optimizer step of a speech LM, from packed rows.

Owns the weighting: gradients of summed losses, divided once by the weighted target count over all
ranks and accumulated rows; which steps have which weights; and the history noise of a row. Which
rows a step has and at what rate is the training loop's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sheen.codec.layout import TokenLayout
from sheen.codec.transfer import to_device
from sheen.lm.batching import Batch, add_history_noise
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner
from sheen.train.learning.metrics import MetricsWindow, loss_sums

HISTORY_NOISE = 1
"""Keeps these random numbers apart from a run's others."""


def take_step(
    learner: Learner,
    group: Collectives,
    window: MetricsWindow,
    rows: Sequence[Batch],
    *,
    weights: Sequence[float],
    guide_weight: float,
    rate: float,
    seed: int,
) -> Tensor:
    """One step on this rank's rows, counted in the window; the gradient norm, equal on all ranks,
    see `Learner.update`.

    weights: of the codec's levels. guide_weight: of guided attention's mean over all targets.
    seed: of dropout, this step's and rank's.
    """
    counts = torch.tensor([row.targets.counts for row in rows], dtype=torch.float64).sum(0)
    levels = torch.tensor(weights, dtype=torch.float64)
    # Gradients are averaged over ranks; the loss is a weighted mean over all of their targets.
    counts = group.sum(counts)
    scale = levels * group.world / (levels @ counts)
    scale = to_device(scale.float(), group.device)
    guide_scale = to_device((guide_weight * group.world / counts.sum()).float(), group.device)
    torch.manual_seed(seed)  # whatever ran before
    for index, row in enumerate(rows):
        sums = learner.loss(row, last=index + 1 == len(rows), guided=guide_weight > 0)
        if sums.guide is None:
            torch.autograd.backward(sums.loss, scale)
        else:
            torch.autograd.backward([sums.loss, sums.guide], [scale, guide_scale])
        window.add(loss_sums(sums, row.tokens))
    return learner.update(rate)


def with_noise(row: Batch, layout: TokenLayout, share: float, seed: int, number: int) -> Batch:
    """A run's row of that number with its history noise, see `add_history_noise`."""
    if not share:
        return row
    draws = np.random.default_rng([seed, number, HISTORY_NOISE])
    return add_history_noise(row, layout, share, draws)


def level_weights(
    given: Sequence[float] | None, steps: int | None, step: int, levels: int
) -> list[float]:
    """Of each level in the loss of a step; every target counts alike where none are given, and
    after so many steps as have them (None: all)."""
    if given is None or (steps is not None and step >= steps):
        return [1.0] * levels
    return list(given)


def guide_weight(given: float, steps: int | None, step: int) -> float:
    """Of guided attention in a step: none after so many steps as have it (None: all)."""
    return given if steps is None or step < steps else 0.0


def check_guide_weight(given: float, steps: int | None) -> None:
    """Raise ValueError where steps are given for no weight."""
    if steps is not None and not given:
        raise ValueError("--guided-attention-steps needs --guided-attention")


def check_level_weights(given: Sequence[float] | None, steps: int | None, levels: int) -> None:
    """Raise ValueError unless there is one for each level, and one of them above 0."""
    if given is None:
        if steps is not None:
            raise ValueError("--level-weights-steps needs --level-weights")
    elif len(given) != levels or not any(given):
        raise ValueError(
            f"--level-weights {','.join(f'{weight:g}' for weight in given)}: expected {levels} "
            "weights, one for each level of the codec, coarse first, and one of them above 0"
        )
