"""The training set of a speech LM in memory: tokens and codes as arrays, by utterance.

Owns building packed rows from it, their history noise, and its reference rows: utterances after
another one of the same speaker, which carries no loss. They train a model to continue in the voice
of a reference; the prompt of a row has both texts and no speaker name, like that of a request with
a reference (`sheen.engine.reference`). It is created by `sheen.train.data`, which makes the tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.codec.layout import TokenLayout
from sheen.lm.batching import PLAIN, Batch, RowForm, add_history_noise, collate

CHOICES = 2
"""Possible references of each utterance; an epoch uses one. More would take memory for texts."""
TRIES = 4
"""Draws for each choice, of which one must fit into a sequence."""
HISTORY_NOISE, EPOCHS = 1, 2
"""Separate their random numbers from a run's others."""


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


@dataclass(frozen=True)
class TrainingSet:
    """Arrays only, so that workers can read them in shared memory.

    `prompts` are the ids of all prompts end to end, `prompt_offsets` `[N + 1]` their bounds;
    `frames` and `frame_offsets` likewise (see `Utterances`). `lengths` `[N]`: tokens of whole
    sequences. With `references`, prompts and lengths of reference rows follow those of the
    utterances.
    """

    layout: TokenLayout
    prompts: NDArray[np.int32]
    prompt_offsets: NDArray[np.int64]
    frames: NDArray[np.int16]
    frame_offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    train: NDArray[np.int64]
    evaluation: NDArray[np.int64]
    swapped_prompts: dict[int, NDArray[np.int32]]
    """Prompts of the evaluation split, see `swap_texts`."""
    summary: dict[str, Any]
    form: RowForm = PLAIN
    references: ReferenceRows | None = None

    def items(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """The items of an epoch, in a run with this seed."""
        if self.references is None:
            return self.train
        return self.references.of_epoch(self.train, seed, epoch)

    def batch(
        self, indices: NDArray[np.int64], pad_id: int, pad_to: int = 0, *, swapped: bool = False
    ) -> Batch:
        """Items (utterances and reference rows) as one packed row, see `collate`; `swapped`: with
        their swapped prompts."""
        prompts = [
            self.swapped_prompts[i]
            if swapped
            else self.prompts[self.prompt_offsets[i] : self.prompt_offsets[i + 1]]
            for i in indices
        ]
        frames, given = [], []
        for index in indices.tolist():
            if self.references is None or index < self.references.first:
                frames.append(self._frames(index))
                given.append(0)
                continue
            row = index - self.references.first
            before = self._frames(self.references.before[row])
            frames.append(np.concatenate([before, self._frames(self.references.spoken[row])]))
            given.append(len(before))
        return collate(prompts, frames, self.layout, pad_id, pad_to, given, self.form)

    def _frames(self, index: int) -> NDArray[np.int16]:
        return self.frames[self.frame_offsets[index] : self.frame_offsets[index + 1]]

    def digest(self) -> str:
        """A hash of all utterances (prompts and codes), in order."""
        digest = hashlib.sha256()
        for part in (self.prompts, self.prompt_offsets, self.frames, self.frame_offsets):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


def with_noise(row: Batch, layout: TokenLayout, share: float, seed: int, number: int) -> Batch:
    """Row `number` of a run with its history noise, see `add_history_noise`."""
    if not share:
        return row
    draws = np.random.default_rng([seed, number, HISTORY_NOISE])
    return add_history_noise(row, layout, share, draws)
