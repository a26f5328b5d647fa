"""Reference rows: utterances after another one of the same speaker, which carries no loss.

They train a model to continue in the voice of a reference. Owns the pairs, and which utterances of
an epoch are in such rows. The prompt of a row has both texts and no speaker name, like that of a
request with a reference (`sheen.engine.reference`). Knows nothing about tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHOICES = 2
"""Possible references of each utterance; an epoch uses one. More would take memory for texts."""
TRIES = 4
"""Draws for each choice, of which one must fit into a sequence."""
EPOCHS = 2
"""Separates these random numbers from a run's others."""


@dataclass(frozen=True)
class ReferenceRows:
    """Row r, item `first + r` of a training set, is utterance `spoken[r]` after utterance
    `before[r]`. `rows` `[utterances, CHOICES]`: the rows of each utterance, -1 for none.
    """

    share: float
    first: int
    before: NDArray[np.int64]
    spoken: NDArray[np.int64]
    rows: NDArray[np.int64]

    def of_epoch(self, utterances: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """The items of an epoch for `utterances`: about `share` of those with a reference row are
        replaced by it."""
        draws = np.random.default_rng([seed, epoch, EPOCHS])
        wanted = draws.random(len(utterances)) < self.share
        row = self.rows[utterances, draws.integers(CHOICES, size=len(utterances))]
        return np.where(wanted & (row >= 0), self.first + row, utterances)


def pair_utterances(
    texts: Sequence[str],
    speakers: Sequence[str | None],
    utterances: NDArray[np.int64],
    share: float,
    seed: int,
    fits: Callable[[int, int], bool],
) -> ReferenceRows:
    """Pairs among `utterances`; `fits(before, spoken)`: whether both fit into one sequence.

    If no utterance has a speaker, all are one voice; otherwise those without a speaker are not
    paired. The texts of a pair differ. ValueError if there is no pair.
    """
    named = any(speakers[index] for index in utterances)
    groups: dict[str | None, list[int]] = {}
    for index in utterances.tolist():
        if speakers[index] or not named:
            groups.setdefault(speakers[index], []).append(index)
    draws = np.random.default_rng([seed, EPOCHS])
    before: list[int] = []
    spoken: list[int] = []
    rows = np.full((len(texts), CHOICES), -1, np.int64)
    for group in groups.values():
        for index in group:
            chosen: list[int] = []
            for place in draws.integers(len(group), size=CHOICES * TRIES).tolist():
                other = group[place]
                if other in chosen or texts[other] == texts[index] or not fits(other, index):
                    continue
                chosen.append(other)
                if len(chosen) == CHOICES:
                    break
            if chosen:
                own = range(len(before), len(before) + len(chosen))
                rows[index] = np.resize(own, CHOICES)
            before += chosen
            spoken += [index] * len(chosen)
    if not before:
        raise ValueError(
            "--reference-share: no two utterances of one speaker, with different texts, fit into "
            "--max-tokens; give more, or shorter recordings, or their speakers"
        )
    return ReferenceRows(
        share, len(texts), np.array(before, np.int64), np.array(spoken, np.int64), rows
    )
