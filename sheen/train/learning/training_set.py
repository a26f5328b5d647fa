"""The training set of a speech LM in memory: tokens and codes as arrays, by utterance.

Owns how a packed row is made of it. Where it comes from is `sheen.train.data`'s.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.codec.layout import TokenLayout
from sheen.lm.batching import Batch, collate


@dataclass(frozen=True)
class TrainingSet:
    """Arrays only, so that workers read them in shared memory.

    `prompts` are all prompts' ids end to end, `prompt_offsets` `[N + 1]` their bounds; `frames`
    and `frame_offsets` likewise (see `Utterances`). `lengths` `[N]` counts whole sequences.
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
    """Of the utterances of `evaluation`, see `swap_texts`."""
    summary: dict[str, Any]

    def batch(
        self, indices: NDArray[np.int64], pad_id: int, pad_to: int = 0, *, swapped: bool = False
    ) -> Batch:
        """Utterances as one packed row, see `collate`; with their swapped prompts or their own."""
        prompts = [
            self.swapped_prompts[i]
            if swapped
            else self.prompts[self.prompt_offsets[i] : self.prompt_offsets[i + 1]]
            for i in indices
        ]
        frames = [self.frames[self.frame_offsets[i] : self.frame_offsets[i + 1]] for i in indices]
        return collate(prompts, frames, self.layout, pad_id, pad_to)

    def digest(self) -> str:
        """A hash of all utterances, texts, voices and codes, in their order."""
        digest = hashlib.sha256()
        for part in (self.prompts, self.prompt_offsets, self.frames, self.frame_offsets):
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()
