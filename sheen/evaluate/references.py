"""The references of an evaluation: one recording with its transcript for each voice.

Owns reading them: an LJSpeech folder or a .jsonl manifest with speakers, of which the first row of
each speaker is the reference. Using them in a prompt is `sheen.engine.reference`'s.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from sheen.data.corpus import plain_rows
from sheen.storage import files, uris


@dataclass(frozen=True)
class Recorded:
    """A recording's file and its transcript."""

    data: bytes
    text: str


def read_references(location: str) -> dict[str, Recorded]:
    """The references of a file by speaker. Raises ValueError naming the file and the row."""
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
    """A hash of voices, recordings and transcripts."""
    parts = [
        (voice, hashlib.sha256(recorded.data).hexdigest(), recorded.text)
        for voice, recorded in references.items()
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
