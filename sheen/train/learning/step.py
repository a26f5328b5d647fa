"""The optimizer step of a speech LM, from packed rows.

Owns the weighting: gradients of summed losses, divided once by the weighted target count over all
ranks and accumulated rows; the weights of each step; and the history noise of a row. The rows of a
step and its learning rate are the training loop's.
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
"""Separates these random numbers from a run's others."""


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
    """One step on this rank's rows, counted in the window; returns the gradient norm, equal on all
    ranks, see `Learner.update`.

    weights: those of the codec's levels. guide_weight: weight of guided attention's mean over all
    targets. seed: seed of dropout for this step and rank.
    """
    counts = torch.tensor([row.targets.counts for row in rows], dtype=torch.float64).sum(0)
    levels = torch.tensor(weights, dtype=torch.float64)
    # Gradients are averaged over ranks; the loss is a weighted mean over all of their targets.
    counts = group.sum(counts)
    scale = levels * group.world / (levels @ counts)
    scale = to_device(scale.float(), group.device)
    guide_scale = to_device((guide_weight * group.world / counts.sum()).float(), group.device)
    torch.manual_seed(seed)  # independent of earlier computations
    for index, row in enumerate(rows):
        sums = learner.loss(row, last=index + 1 == len(rows), guided=guide_weight > 0)
        if sums.guide is None:
            torch.autograd.backward(sums.loss, scale)
        else:
            torch.autograd.backward([sums.loss, sums.guide], [scale, guide_scale])
        window.add(loss_sums(sums, row.tokens))
    return learner.update(rate)


def with_noise(row: Batch, layout: TokenLayout, share: float, seed: int, number: int) -> Batch:
    """Row `number` of a run with its history noise, see `add_history_noise`."""
    if not share:
        return row
    draws = np.random.default_rng([seed, number, HISTORY_NOISE])
    return add_history_noise(row, layout, share, draws)


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
