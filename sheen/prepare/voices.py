"""Speakers for the rows: their embeddings clustered, and clusters named.

Owns which rows take part, those that are kept, and the reason of rows that are nobody's. The
clustering is `sheen.prepare.speakers`'s; it is done over all rows at once, on the driver, and again
whenever the manifest is written.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sheen.prepare.speakers import Floats, Voiced, find_speakers, name_speakers

Row = dict[str, Any]


def assign_speakers(
    rows: list[Row],
    transcripts: pa.Table,
    num_speakers: int | None,
    examples: Mapping[str, Floats],
) -> None:
    """Fills `speaker` of kept rows without one; what is nobody's is refused. Arguments as in
    `sheen.prepare.speakers`, `transcripts` with the column `embedding`."""
    points = dict(zip(transcripts["id"].to_pylist(), transcripts["embedding"], strict=True))
    kept = [row for row in rows if row["reason"] is None and row["speaker"] is None]
    voiced = [
        Voiced(
            row["id"],
            f"{row['audio']} {row['place'] or ''}",
            row["start"] or 0.0,
            (row["start"] or 0.0) + (row["seconds"] or 0.0),
            _unit(points.get(row["id"])),
            row["channel"],
        )
        for row in kept
    ]
    speakers = find_speakers(voiced, num_speakers)
    names = name_speakers(speakers, examples)
    for row in kept:
        number = speakers.labels[row["id"]]
        if number is not None:
            row["speaker"] = names[number]
        elif row["checked"] is None:
            row |= {"reason": "another voice", "detail": f"none of {len(names)} speakers"}


def _unit(embedding: Any) -> Floats | None:
    """A list of Arrow's, of length 1 again, after float32; None of none."""
    if embedding is None or not embedding.is_valid:
        return None
    vector = embedding.values.to_numpy().astype(np.float64)
    return np.asarray(vector / np.linalg.norm(vector))
