"""Recordings of voices that a checkpoint is to speak in: one of each, with its words.

Owns the file: an LJSpeech folder or a .jsonl manifest with speakers, of which the first usable row
of each speaker is its reference. How it is spoken in is `sheen.engine.reference`'s.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sheen.data.corpus import plain_rows
from sheen.storage import files, uris


@dataclass(frozen=True)
class Recorded:
    """A whole file, and what is said in it."""

    data: bytes
    text: str


def read_references(location: str) -> dict[str, Recorded]:
    """By speaker. Raises ValueError naming the file and the row."""
    found: dict[str, Recorded] = {}
    for row in plain_rows(uris.absolute(location)):
        if not row["speaker"] or row["speaker"] in found:
            continue
        if row["reason"] is not None:
            raise ValueError(f"{location}, {row['source']}: {row['reason']}: {row['detail']}")
        found[row["speaker"]] = Recorded(files.read_bytes(row["audio"]), row["text"])
    if not found:
        raise ValueError(f"{location}: no row has a speaker")
    return found


def references_digest(references: Mapping[str, Recorded]) -> str:
    """A hash of voices, recordings and words."""
    parts = [
        (voice, hashlib.sha256(recorded.data).hexdigest(), recorded.text)
        for voice, recorded in references.items()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
