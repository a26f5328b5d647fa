"""SNAC in its published 24 kHz shape with random weights, which cost what trained ones cost."""

from typing import Any

import torch
from snac import SNAC

PUBLISHED: dict[str, Any] = {
    "sampling_rate": 24_000,
    "encoder_dim": 48,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
"""config.json of hubertsiuzdak/snac_24khz."""


def make_snac() -> SNAC:
    """The same weights every time."""
    torch.manual_seed(0)
    return SNAC(**PUBLISHED)
