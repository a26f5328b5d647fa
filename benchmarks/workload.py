"""What the training benchmarks train: a base of a published shape, and clips to train it on.

Owns the shapes, the drawn clips, and padded batches of them with the loss over legal rows. Imports
torch, transformers and sheen without its jobs, so that a GPU machine without Ray can run it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config

from sheen.codec.layout import TokenLayout
from sheen.lm.batching import Batch, collate, targets_of
from sheen.lm.loss import IGNORE_INDEX, LossSums, Targets, speech_loss
from sheen.lm.model import SpeechLM

FRAMES_PER_SECOND = 24_000 / 2048  # of the 24 kHz SNAC, 7 tokens each: 82 tokens per second
TEXT_PER_SECOND = 4.0  # tokens: about three words of speech
PAD_ID = 0


@dataclass(frozen=True)
class Shape:
    """A Qwen3 base: `vocabulary` rows before the 12,290 of the codec are added."""

    layers: int
    hidden: int = 1024
    intermediate: int = 3072
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.vocabulary, 4096, (4, 2, 1))

    @property
    def small(self) -> "Shape":
        return replace(
            self, hidden=64, intermediate=192, heads=4, kv_heads=2, head_dim=16, vocabulary=1000
        )


def make_base(
    shape: Shape, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Random weights, the same ones every time on one kind of device, and made there."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocabulary + shape.layout.size,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    # In the dtype from the start: a cast would round the rotary frequencies too.
    with torch.device(device):
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return lm.train()


@dataclass(frozen=True)
class Clip:
    """A prompt ending in `<audio_start>` and codes `[frames, 7]`."""

    prompt: list[int]
    codes: NDArray[np.int16]

    def __len__(self) -> int:
        """Tokens of the whole sequence, with `<audio_end>`."""
        return len(self.prompt) + self.targets

    @property
    def targets(self) -> int:
        return self.codes.size + 1


def draw_clips(count: int, shortest: float, longest: float, layout: TokenLayout) -> list[Clip]:
    """Lengths in seconds are uniform and independent: the order they come in is a random one."""
    random = np.random.default_rng(0)
    clips = []
    for seconds in random.uniform(shortest, longest, count):
        frames = max(1, round(seconds * FRAMES_PER_SECOND))
        text = random.integers(1, layout.first_id, max(1, round(seconds * TEXT_PER_SECOND)))
        codes = random.integers(0, layout.codebook_size, (frames, layout.tokens_per_frame))
        clips.append(Clip([*text.tolist(), layout.start_id], codes.astype(np.int16)))
    return clips


def pack_row(clips: Sequence[Clip], layout: TokenLayout, pad_to: int = 0) -> Batch:
    prompts, codes = [clip.prompt for clip in clips], [clip.codes for clip in clips]
    return collate(prompts, codes, layout, PAD_ID, pad_to)


@dataclass(frozen=True)
class Padded:
    """Clips `[B, L]`, each padded to the longest; labels are IGNORE_INDEX on prompts and pads."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    targets: Targets

    def to(self, device: torch.device) -> "Padded":
        return Padded(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.targets.to(device),
        )


def pad_batch(clips: Sequence[Clip], layout: TokenLayout) -> Padded:
    shape = len(clips), max(map(len, clips))
    ids, mask = np.full(shape, PAD_ID, np.int64), np.zeros(shape, np.int64)
    labels = np.full(shape, IGNORE_INDEX, np.int64)
    for row, clip in enumerate(clips):
        audio = [*layout.to_ids(clip.codes).tolist(), layout.end_id]
        ids[row, : len(clip)] = [*clip.prompt, *audio]
        mask[row, : len(clip)] = 1
        labels[row, len(clip.prompt) : len(clip)] = audio
    # Every row begins without labels, so that flattened no position predicts the next row's first.
    targets = targets_of(labels.reshape(-1), layout)
    return Padded(*map(torch.from_numpy, (ids, mask, labels)), targets)


class PaddedLM(SpeechLM):
    """The speech model over padded batches: its loss, without its packing."""

    def forward(self, batch: Padded) -> LossSums:  # type: ignore[override]
        inputs, head = self.inputs_and_head(batch.input_ids)
        output = self.hidden(
            inputs.pop("input_ids", None),
            attention_mask=batch.attention_mask,
            use_cache=False,
            **inputs,
        )
        states = output.last_hidden_state.flatten(0, 1)
        return speech_loss(states, batch.targets, head, self.layout, self.softmax)
