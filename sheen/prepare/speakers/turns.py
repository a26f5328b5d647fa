"""Segments in which one speaker follows another without a pause between them.

Owns the rule: two parts of a segment are of different voices if each is near its own voice, and
clearly nearer to it than to the voice of the other part. The parts are chosen by
`sheen.prepare.speakers.embedding`, and the voices found by `sheen.prepare.speakers.clustering`. A
turn that is much shorter than a part is not found, nor one that lies between parts.

Shapes: n segments, p parts of each, D dimensions of an embedding, k people, v voices of one.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sheen.prepare.speakers.embedding import Floats

NEAR = 0.75
"""Least cosine of a part with the centroid of a voice. Of 288 ends of segments of six voices, five
of them synthetic, four have less (0.6, all of a person's prompts), the others at least 0.8."""
MARGIN = 0.06
"""By how much a part must be nearer to its own voice. Of these ends 98% are, and none is nearer to
another voice (decision 0029)."""


def changes(parts: NDArray[np.float32], people: Sequence[Floats]) -> list[tuple[int, int] | None]:
    """For each segment the two people who speak in it, by their numbers, the earlier one first;
    None for a segment with one.

    `parts` `[n, p, D]`: embeddings of each segment's parts in the order of time; `people`: `[v, D]`
    for each person, centroids of their voices. All of length 1.
    """
    pairs: list[tuple[int, int] | None] = [None] * len(parts)
    if len(people) < 2:
        return pairs
    cosines = np.stack([(parts @ voices.T).max(axis=2) for voices in people], axis=2)  # [n, p, k]
    nearest, near = cosines.argmax(axis=2), cosines.max(axis=2) >= NEAR
    rows = np.arange(len(parts))
    for one, other in combinations(range(parts.shape[1]), 2):
        a, b = nearest[:, one], nearest[:, other]
        margin = np.minimum(
            cosines[rows, one, a] - cosines[rows, one, b],
            cosines[rows, other, b] - cosines[rows, other, a],
        )
        for row in np.flatnonzero(near[:, one] & near[:, other] & (margin >= MARGIN)):
            pairs[row] = int(a[row]), int(b[row])
    return pairs
