"""The first values of the audio tokens' rows in a base's embedding table.

Owns two ways to draw them. Both give rows the mean and the covariance of the rows the base has;
they differ in the noise that the covariance colours: independent for every row, or alike for codes
whose codebook vectors are alike. The second is the trainer's default: `benchmarks/new_rows.py`
compares them, docs/decisions/0013 has the figures.

transformers' own mean_resizing scales that covariance by 1e-9: all rows start equal (arXiv
2604.02324). That did better than independent rows, and worse than rows from codebooks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sheen.core.tokens import TokenLayout

LEVEL_SHARE = 0.5
"""Share of the noise's variance that all codes of a level have in common."""


def draw_noise(
    rows: int,
    width: int,
    generator: torch.Generator,
    layout: TokenLayout,
    codebooks: Sequence[Tensor] | None,
) -> Tensor:
    """Noise `[rows, width]` float64 of unit variance for the rows from `<audio_start>` on.

    Without `codebooks` every row is drawn by itself. With them, one `[codebook_size, d]` per level,
    a code's row is a random linear map of its whitened vector plus what its level has in common.
    """
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    for level, vectors in enumerate(codebooks or []):
        white = _whiten(vectors.double().cpu())
        mapping = torch.randn(white.shape[1], width, generator=generator, dtype=torch.float64)
        common = torch.randn(width, generator=generator, dtype=torch.float64)
        own = white @ mapping / white.shape[1] ** 0.5
        first = layout.level_base(level) - layout.first_id
        noise[first : first + layout.codebook_size] = (
            LEVEL_SHARE**0.5 * common + (1 - LEVEL_SHARE) ** 0.5 * own
        )
    return noise


def _whiten(vectors: Tensor) -> Tensor:
    """`[n, d]` with zero mean, unit variances and no correlation."""
    centred = vectors - vectors.mean(0)
    left, _, right = torch.linalg.svd(centred, full_matrices=False)
    return len(vectors) ** 0.5 * left @ right


@torch.no_grad()
def initialise_rows(table: Tensor, known: int, noise: Tensor) -> None:
    """Set the rows from `known` on to the mean of those before plus their coloured noise."""
    existing = table[:known].double()
    mean = existing.mean(0)
    centred = existing - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / max(1, known - 1))
    factor = vectors * values.clamp(min=0).sqrt()
    table[known:] = (mean + noise.to(table.device) @ factor.T).to(table.dtype)
