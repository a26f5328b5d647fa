"""Text gain: how much better a speech LM predicts speech after its own text than after another.

Owns the choice of the other text, and the metric. The loss of a speech LM that ignores its text
still falls, but its gain is zero.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sheen.text.prompt import PromptTemplate


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
