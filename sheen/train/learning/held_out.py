"""Losses and text gain of the evaluation split, which ranks share."""

from typing import Any

import numpy as np

from sheen.lm.packing import pack, padded_length
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner
from sheen.train.learning.metrics import MetricsWindow, loss_metrics, loss_sums
from sheen.train.learning.text_gain import text_gain
from sheen.train.learning.training_set import TrainingSet


def held_out_metrics(
    learner: Learner, group: Collectives, data: TrainingSet, *, capacity: int, pad_id: int
) -> dict[str, Any]:
    """The mean losses of the evaluation split, and its text gain where it has two texts.

    capacity: tokens of a packed row. Every rank calls it at the same step, and gets the same.
    """
    model = learner.model
    model.eval()
    sums = MetricsWindow(group)
    rows = pack(data.lengths, data.evaluation, capacity)
    length = padded_length(data.lengths, rows, capacity)
    # Every rank takes equally many, as sharded layers compute together.
    rows += [np.zeros(0, np.int64)] * (-len(rows) % group.world)
    for indices in rows[group.rank :: group.world]:
        batch = data.batch(indices, pad_id, length)
        values = loss_sums(learner.evaluate(batch), batch.tokens)
        if data.swapped_prompts:
            swapped = data.batch(indices, pad_id, length, swapped=True)
            values["swapped_loss"] = learner.evaluate(swapped).loss
        sums.add(values)
    model.train()
    total = sums.end()[0]
    gain = text_gain(total) if data.swapped_prompts else {}
    return loss_metrics(total, "eval_") | gain
