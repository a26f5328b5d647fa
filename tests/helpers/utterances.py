"""Made-up utterances, as the language model's tests take them."""

import numpy as np

from sheen.codec.layout import TokenLayout

LAYOUT = TokenLayout(50, 32, (4, 2, 1))


def utterances(*frames: int, layout: TokenLayout = LAYOUT) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    size = layout.codebook_size
    return [generator.integers(0, size, (n, layout.tokens_per_frame), np.int16) for n in frames]


def prompts(*lengths: int, layout: TokenLayout = LAYOUT) -> list[list[int]]:
    return [[*range(1, length), layout.start_id] for length in lengths]
