"""Random numbers as a function of (seed, purpose, position), with no state.

A generator with state gives a request other numbers when another request joins its batch, or when
its audio is decoded in other chunks. Here a number depends only on where it is used, so the same
seed gives the same draws whatever else runs, on any device and in any batch.

The mixer is lowbias32 (Chris Wellons, "Prospecting for Hash Functions", 2018), in int64 tensors
because torch has no unsigned arithmetic.
"""

import math

import numpy as np
import torch
from torch import Tensor

SAMPLING = 1
"""Purpose: which token to draw; position is the request's step."""
NOISE = 16
"""Purpose: the codec's noise in upsampling block k is `NOISE + k`; position is the sample."""

_MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = x & _MASK
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _MASK
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _MASK
    return x ^ (x >> 16)


def uniform(seeds: Tensor, purpose: int, positions: Tensor) -> Tensor:
    """Uniform draws in (0, 1), float32, both ends excluded.

    `seeds` `[B]` int64; `positions` `[B, N]` or `[N]` int64, non-negative and below 2**32.
    Returns `[B, N]`.
    """
    key = _mix(_mix(seeds) + (seeds >> 32))
    key = _mix(key + (purpose * 0x9E3779B9 & _MASK))[:, None]
    bits = _mix(_mix(positions ^ key) + key)
    # 23 bits: of 24, the largest value and a half would round to 1.
    return ((bits >> 9).to(torch.float32) + 0.5) * 2.0**-23


def normal(seeds: Tensor, purpose: int, positions: Tensor) -> Tensor:
    """Standard normal draws, float32, shaped as `uniform`'s (inverse of the normal's CDF)."""
    return math.sqrt(2.0) * torch.erfinv(2.0 * uniform(seeds, purpose, positions) - 1.0)


def step_seed(*parts: int) -> int:
    """One seed for torch's own generator from a run's seed, a step, a rank."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
