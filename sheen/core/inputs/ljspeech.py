"""An LJSpeech folder: metadata.csv of `id|text` lines beside wavs/."""

from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from sheen.core import files
from sheen.core.inputs.rows import AUDIO_SUFFIXES, RowBuilder, iter_lines

METADATA_FILE = "metadata.csv"


def read(folder: str, limit: int | None) -> list[pa.RecordBatch]:
    """`id|text`, `id|text|normalised text` or `id|text|normalised text|speaker`, no header.

    Raises ValueError for a faulty file as a whole.
    """
    path = files.join(folder, METADATA_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: an LJSpeech folder holds metadata.csv (id|text lines) and wavs/"
        )
    lines = [line for line in iter_lines(path) if line[1].strip()]
    _check_delimiter(path, lines)
    recordings = {
        PurePosixPath(name).stem: PurePosixPath(name).name
        for name in sorted(files.list_files(files.join(folder, "wavs")))
        if name.lower().endswith(AUDIO_SUFFIXES)
    }
    rows = RowBuilder(limit)
    for number, line in lines:
        if rows.full:
            break
        rows.add(_row(folder, number, line, recordings))
    return rows.finish()


def _check_delimiter(path: str, lines: list[tuple[int, str]]) -> None:
    if not lines:
        raise ValueError(f"{path} is empty: expected id|text lines")
    if not any("|" in line for _, line in lines):
        used = next(
            (
                name
                for char, name in {"\t": "a tab", ",": "a comma", ";": "a semicolon"}.items()
                if char in lines[0][1]
            ),
            "something else",
        )
        raise ValueError(
            f"{path}: wrong delimiter: line {lines[0][0]} is {lines[0][1][:60]!r}; fields must be "
            f"separated by '|', this file seems to use {used}"
        )


def _row(folder: str, number: int, line: str, recordings: dict[str, str]) -> dict[str, Any]:
    fields = [field.strip() for field in line.split("|")]
    row: dict[str, Any] = {"id": fields[0], "source": f"{METADATA_FILE}:{number}"}
    if not 2 <= len(fields) <= 4 or not fields[0]:
        detail = (
            f"line {number} has {len(fields)} fields separated by '|', expected "
            "id|text[|normalised text[|speaker]]"
        )
        return row | {"text": "", "reason": "malformed row", "detail": detail}
    row["text"] = fields[2] if len(fields) > 2 and fields[2] else fields[1]
    row["speaker"] = fields[3] or None if len(fields) == 4 else None
    # Some corpora write the file's name with its suffix as the id.
    stem = fields[0].rpartition(".")[0] if fields[0].lower().endswith(AUDIO_SUFFIXES) else ""
    name = recordings.get(fields[0]) or recordings.get(stem)
    row["audio"] = files.child(folder, f"wavs/{name or f'{fields[0]}.wav'}")
    if name is None:
        row |= {"reason": "missing", "detail": f"no recording {row['audio']}"}
    return row
