"""Speakers of the rows, by clustering their embeddings.

Owns which rows take part (the kept ones), the reasons of rows without a speaker and of rows with
two, and the rule for these: two parts of a segment are of different voices if each is near its own
voice, and clearly nearer to it than to the voice of the other part. The parts are chosen by
`sheen.prepare.speakers.embedding`. A turn that is much shorter than a part is not found, nor one
that lies between parts. The clustering is `sheen.prepare.speakers.clustering`'s. All of it runs on
the driver over all rows, each time the manifest is written.

Shapes: n segments, p parts of each, D dimensions of an embedding, k people, v voices of one.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheen.prepare.speakers.clustering import (
    EmbeddedSegment,
    Speakers,
    find_speakers,
    name_speakers,
)
from sheen.prepare.speakers.embedding import END, MIDDLE, START, Floats

Row = dict[str, Any]
TWO_SPEAKERS = "two speakers"
AT_ONCE = 4096
"""Rows whose parts are compared with all voices at once."""
NEAR = 0.75
"""Least cosine of a part with the centroid of a voice. Of 288 ends of segments of six voices, five
of them synthetic, four have less (0.6, all of a person's prompts), the others at least 0.8."""
MARGIN = 0.06
"""By how much a part must be nearer to its own voice. Of these ends 98% are, and none is nearer to
another voice (decision 0029)."""


def assign_speakers(
    rows: list[Row],
    transcripts: pa.Table,
    num_speakers: int | None,
    examples: Mapping[str, Floats],
) -> None:
    """Fill `speaker` of kept rows; rows without a speaker, or with two, are rejected. Arguments as
    in `sheen.prepare.speakers.clustering`; `transcripts` has the columns of
    `sheen.prepare.speakers.embedding`.

    The middle of a row with two speakers may resemble neither: without such rows, the speakers are
    found again.
    """
    points = dict(zip(transcripts["id"].to_pylist(), transcripts[MIDDLE], strict=True))
    kept = [row for row in rows if row["reason"] is None and row["speaker"] is None]
    embedded = [
        EmbeddedSegment(
            row["id"],
            f"{row['audio']} {row['place'] or ''}",
            row["start"] or 0.0,
            (row["start"] or 0.0) + (row["seconds"] or 0.0),
            _unit(points.get(row["id"])),
            row["channel"],
        )
        for row in kept
    ]
    speakers = find_speakers(embedded, num_speakers)
    names = name_speakers(speakers, examples)
    # A channel has one speaker, and a row that a person checked is not rejected.
    candidates = [row["id"] for row in kept if row["channel"] is None and row["checked"] is None]
    two = _two_speakers(transcripts, candidates, speakers, names)
    if two:
        speakers = find_speakers([one for one in embedded if one.id not in two], num_speakers)
        names = name_speakers(speakers, examples)
        two |= _two_speakers(transcripts, two, speakers, names)  # by the names as they are now
    for row in kept:
        if row["id"] in two:
            row |= {"reason": TWO_SPEAKERS, "detail": two[row["id"]]}
            continue
        number = speakers.labels[row["id"]]
        if number is not None:
            row["speaker"] = names[number]
        elif row["checked"] is None:
            row |= {"reason": "another voice", "detail": f"not one of the {len(names)} speakers"}


def _two_speakers(
    transcripts: pa.Table, ids: Collection[str], speakers: Speakers, names: list[str]
) -> dict[str, str]:
    """Of the rows with these ids, those with two speakers: id -> who they are."""
    people: dict[str | int, list[Floats]] = defaultdict(list)
    for place, (voice, number) in enumerate(zip(speakers.voices, speakers.speaker, strict=True)):
        people[place if number is None else names[number]].append(voice)
    told = [name if isinstance(name, str) else "another voice" for name in people]
    if len(people) < 2:
        return {}
    table = transcripts.select(["id", START, MIDDLE, END])
    table = table.filter(pc.is_in(table["id"], pa.array(list(ids), pa.string()))).drop_null()
    found: dict[str, str] = {}
    for batch in table.to_batches(max_chunksize=AT_ONCE):
        row_ids: list[Any] = batch["id"].to_pylist()
        parts = [pc.list_flatten(batch[name]).to_numpy() for name in (START, MIDDLE, END)]
        stacked = np.stack([part.reshape(len(batch), -1) for part in parts], axis=1)
        pairs = speaker_changes(
            stacked.astype(np.float32), [np.stack(one) for one in people.values()]
        )
        for row_id, pair in zip(row_ids, pairs, strict=True):
            if pair is not None:
                found[row_id] = f"{told[pair[0]]}, then {told[pair[1]]}"
    return found


def speaker_changes(
    parts: NDArray[np.float32], people: Sequence[Floats]
) -> list[tuple[int, int] | None]:
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


def _unit(embedding: Any) -> Floats | None:
    """An embedding from Arrow, normalized again after rounding to float32; None for null."""
    if embedding is None or not embedding.is_valid:
        return None
    vector = embedding.values.to_numpy().astype(np.float64)
    return np.asarray(vector / np.linalg.norm(vector))
