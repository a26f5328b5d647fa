"""Speakers of the rows, by clustering their embeddings.

Owns which rows take part (the kept ones), and the reason of rows without a speaker. The clustering
is `sheen.prepare.speakers.clustering`'s; it runs on the driver over all rows, each time the
manifest is written.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from sheen.prepare.speakers.clustering import Floats, Voiced, find_speakers, name_speakers

Row = dict[str, Any]


def assign_speakers(
    rows: list[Row],
    transcripts: pa.Table,
    num_speakers: int | None,
    examples: Mapping[str, Floats],
) -> None:
    """Fill `speaker` of kept rows; rows without a speaker are rejected. Arguments as in
    `sheen.prepare.speakers.clustering`; `transcripts` has the column `embedding`."""
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
            row |= {"reason": "another voice", "detail": f"not one of the {len(names)} speakers"}


def _unit(embedding: Any) -> Floats | None:
    """An embedding from Arrow, normalized again after rounding to float32; None for null."""
    if embedding is None or not embedding.is_valid:
        return None
    vector = embedding.values.to_numpy().astype(np.float64)
    return np.asarray(vector / np.linalg.norm(vector))
