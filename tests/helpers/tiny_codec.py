"""A SNAC of a few thousand parameters and random weights, with the published codec's strides."""

from typing import Any

import torch
from snac import SNAC

TINY: dict[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 8,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 32,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 64,
    "vq_strides": [4, 2, 1],
}


def tiny(config: dict[str, Any] = TINY, seed: int = 0) -> SNAC:
    torch.manual_seed(seed)
    return SNAC(**config)
