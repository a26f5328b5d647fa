"""The training set of a speech LM in memory: tokens and codes as arrays, by utterance.

Owns building packed rows from it. It is created by `sheen.train.data`.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.codec.layout import TokenLayout
from sheen.lm.batching import PLAIN, Batch, RowForm, collate
from sheen.train.learning.reference_rows import ReferenceRows


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
