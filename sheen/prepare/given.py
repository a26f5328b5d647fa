"""Corpora as input: rows with texts, which are checked and not cut.

Owns which inputs are corpora, and their rows as segments. A text next to a recording is
`sheen.prepare.beside`'s; comparing text and transcript is `sheen.prepare.texts`'.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sheen.data.clips import TRANSIENT
from sheen.data.corpus import read_manifest
from sheen.data.readers.ljspeech import METADATA_FILE
from sheen.prepare.manifest import Segments
from sheen.prepare.output import SEGMENT_SCHEMA
from sheen.prepare.sources import SUFFIXES as RECORDINGS
from sheen.storage import files, uris

WHERE = ("audio", "container", "place", "channel", "start", "end")
"""Columns that locate the samples of a row."""
CORPUS_SUFFIXES = (".jsonl", ".json", ".parquet", ".tar")

Row = dict[str, Any]


def is_corpus(location: str) -> bool:
    """Whether an input has rows with texts: a manifest, an LJSpeech folder, or a folder with
    manifests and no recordings."""
    path = uris.absolute(location)
    if uris.name(path).lower().endswith(CORPUS_SUFFIXES):
        return True
    if files.kind(path) != fs.FileType.Directory:
        return False
    if files.exists(uris.join(path, METADATA_FILE)):
        return True
    names = [uris.name(each).lower() for each in files.list_below(path)]
    return any(name.endswith(CORPUS_SUFFIXES) for name in names) and not any(
        name.endswith(RECORDINGS) for name in names
    )


def plan_corpus(locations: Sequence[str]) -> Segments:
    """The rows of corpora as segments with their texts; unusable rows are rejected. A row without a
    text will be transcribed. Raises ValueError."""
    try:
        manifest = read_manifest([uris.absolute(location) for location in locations])
    except ValueError as error:
        raise ValueError(f"--input: {error}") from error
    good: list[Row] = []
    rejected: list[Row] = []
    for row in manifest.to_pylist():
        if row["snac_codes"] is not None:
            raise ValueError(
                f"--input: {row['source']} has codes instead of a recording, which cannot be "
                "transcribed; give the recordings"
            )
        found = {name: row[name] for name in ("key", "id", *WHERE)}
        found |= {"given": row["text"] or None, "check_language": False}
        found |= {f"given_{name}": row[name] for name in ("speaker", "instruction")}
        why = {"reason": row["reason"], "detail": row["detail"]}
        if row["reason"] in (None, "no text"):
            good.append(found | {"reason": None, "detail": None})
        elif row["reason"] in TRANSIENT and row["audio"]:
            good.append(found | why)  # one of the sources all the same, when it is there later
        else:
            rejected.append(found | {"audio": row["audio"] or ""} | why)
    return Segments(pa.Table.from_pylist(good, schema=SEGMENT_SCHEMA), rejected)
