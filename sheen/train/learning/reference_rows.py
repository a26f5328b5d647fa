"""Reference rows: utterances that begin with another one of their speaker, which is not learned.

They teach a model to go on in a voice that it is given. Owns which utterance goes before which, and
which utterances an epoch has in that form. The prompt of such a row has both texts and no name, as
that of a reference has (`sheen.engine.reference`). Knows nothing about tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CHOICES = 2
"""Other utterances that may go before each; an epoch takes one. More take memory for texts."""
TRIES = 4
"""Draws for each of them, of which one has to fit into a sequence."""
EPOCHS = 2
"""Keeps these random numbers apart from a run's others."""


@dataclass(frozen=True)
class ReferenceRows:
    """Arrays. Row r, which a training set has at `first + r`, is utterance `spoken[r]` after
    utterance `before[r]`. `rows` `[utterances, CHOICES]` are those of an utterance, -1 for none.
    """

    share: float
    first: int
    before: NDArray[np.int64]
    spoken: NDArray[np.int64]
    rows: NDArray[np.int64]

    def of_epoch(self, utterances: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
        """What stands for `utterances` in an epoch: about `share` of them in this form, where they
        have one."""
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
    """Pairs among `utterances`; `fits(before, spoken)`: whether one sequence holds both.

    Utterances without a speaker are one voice where none has one, and else nobody's. The two of a
    pair have different texts. ValueError where there is no pair at all.
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
