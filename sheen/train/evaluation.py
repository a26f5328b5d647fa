"""The speech model as it stands: its loss on held-out utterances, and the prompts it speaks.

Owns how ranks share both, and that the model is in training mode again after either. When is the
loop's business; what is measured of the prompts' audio, the audition's; where it is kept, the
outcome's.
"""

from typing import Any

import numpy as np
import torch

from sheen.core.packing import pack
from sheen.train.audition import Audition
from sheen.train.data import TrainingSet
from sheen.train.learner import Learner
from sheen.train.metrics import loss_metrics, sums_vector, vector_size
from sheen.train.outcome import Outcome
from sheen.train.ranks import Ranks


class Evaluation:
    """One rank's part. Every rank calls a method at the same step, and gets the same metrics.

    capacity: tokens of a packed row. audition: on the one rank that speaks.
    """

    def __init__(
        self,
        learner: Learner,
        ranks: Ranks,
        data: TrainingSet,
        audition: Audition | None,
        *,
        capacity: int,
        pad_id: int,
    ) -> None:
        self._learner, self._ranks, self._data = learner, ranks, data
        self._audition = audition
        self._capacity, self._pad_id = capacity, pad_id

    def loss(self) -> dict[str, Any]:
        """The mean losses of the evaluation split."""
        model, ranks, data = self._learner.model, self._ranks, self._data
        model.eval()
        size = vector_size(data.layout.levels)
        sums = torch.zeros(size, dtype=torch.float64, device=ranks.device)
        rows = pack(data.lengths, data.evaluation, self._capacity)
        # Every rank takes equally many, as sharded layers compute together.
        rows += [np.zeros(0, np.int64)] * (-len(rows) % ranks.world)
        for indices in rows[ranks.rank :: ranks.world]:
            batch = data.batch(indices, self._pad_id)
            sums += sums_vector(self._learner.evaluate(batch), batch.input_ids.shape[1])
        model.train()
        return loss_metrics(ranks.sum(sums), "eval_")

    def speak(self, outcome: Outcome, step: int) -> dict[str, Any]:
        """One rank speaks, and keeps what it said; all get what was measured."""
        metrics: dict[str, Any] = {}
        if self._audition is not None:
            model = self._learner.model
            model.eval()
            spoken = self._audition.speak(model)
            model.train()
            metrics = self._audition.measure(spoken)
            outcome.speak(step, spoken, self._audition.sample_rate)
        return self._ranks.gather(metrics)[0]
