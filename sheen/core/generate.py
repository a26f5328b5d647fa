"""Token generation for one fixed batch: prompts in, one token per request and step out.

Owns the prefill, the KV cache and the slot grammar: at step s every row stands at slot
`s mod tokens_per_frame`, and only that slot's rows of the head are computed. It runs until its
consumer stops; endings and budgets are the engine's.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sheen.core.model import SpeechLM
from sheen.core.sampling import Sampler


@torch.inference_mode()
def generate(
    model: SpeechLM,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    min_frames: Sequence[int] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Yield token ids `[B]`, step after step, for prompts that end in `<audio_start>`.

    `<audio_end>` cannot come before a row's `min_frames` whole frames (default 1). A row that its
    consumer considers finished goes on; its further tokens are to be ignored.
    """
    layout = model.layout
    device = model.head.device
    longest = max(len(prompt) for prompt in prompts)
    # Left padding: every row's first audio token falls on the same step, so slots are aligned.
    ids = torch.full((len(prompts), longest), layout.start_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0).to(device)
    ids, mask = ids.to(device), mask.to(device)
    ragged = bool((mask == 0).any())
    minimum = torch.tensor(min_frames or [1] * len(prompts), device=device)
    cache = DynamicCache(config=model.lm.config)
    step = 0
    while True:
        states = model.hidden(
            ids,
            attention_mask=mask if ragged else None,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        token = _choose(model, states, sampler, step, minimum)
        yield token.cpu().numpy()
        step += 1
        ids, positions = token[:, None], positions[:, -1:] + 1
        if ragged:
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)


def _choose(
    model: SpeechLM, states: Tensor, sampler: Sampler, step: int, min_frames: Tensor
) -> Tensor:
    frame, slot = divmod(step, model.layout.tokens_per_frame)
    legal = model.layout.legal(slot)
    logits = states @ model.head[legal.start : legal.stop].T
    if legal.start == model.layout.end_id:
        logits[frame < min_frames, 0] = float("-inf")
    return legal.start + sampler.choose(logits, step)
