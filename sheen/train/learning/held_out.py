"""Losses of the evaluation split, which ranks share, and its text gain.

Text gain is how much better a speech LM predicts speech after its own text than after another. The
loss of a speech LM that ignores its text still falls, but its gain is zero. Owns the choice of the
other text. Does not decide when to evaluate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sheen.lm.packing import pack, padded_length
from sheen.text.prompt import PromptTemplate
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.learner import Learner
from sheen.train.learning.metrics import MetricsWindow, loss_metrics, loss_sums
from sheen.train.learning.training_set import TrainingSet


def swap_texts(
    texts: Sequence[str],
    speakers: Sequence[str | None],
    instructions: Sequence[str | None],
    prompts: Sequence[Sequence[int]],
    evaluation: NDArray[np.int64],
    template: PromptTemplate,
) -> dict[int, NDArray[np.int32]]:
    """For each utterance of `evaluation` its prompt with another one's text and its own speaker and
    instruction.

    The other text is the next shorter one (for the shortest, the second shortest), so that the
    length of the text reveals little. The prompt is cut to the length of the utterance's own, so
    that it fits into the same row. Empty if all utterances have the same text.
    """
    distinct = sorted(dict.fromkeys(texts[index] for index in evaluation), key=len)
    if len(distinct) < 2:
        return {}
    other = dict(zip(distinct, [distinct[1], *distinct[:-1]], strict=True))
    swapped = {}
    for index in evaluation.tolist():
        prompt = template.ids(other[texts[index]], speakers[index], instructions[index])
        after = len(template.after)
        words = prompt[:-after][: len(prompts[index]) - after]
        swapped[index] = np.array([*words, *template.after], np.int32)
    return swapped


def text_gain(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """By level, nats per target: the loss after swapped texts minus that after the right ones."""
    gains = (sums["swapped_loss"] - sums["loss"]) / sums["targets"]
    return {f"eval_text_gain_level_{i}": round(gain, 5) for i, gain in enumerate(gains.tolist())}


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
