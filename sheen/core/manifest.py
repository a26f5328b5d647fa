"""Where recordings come from: an LJSpeech folder or a JSONL manifest -> one manifest table.

Owns reading the user's own files and every fault they may have. A fault of the whole file is an
error; a fault of one row becomes a row with a reason, so that the report accounts for it. Reads no
audio.
"""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
from pyarrow import fs

from sheen.core import files
from sheen.core.prompt import normalise

MANIFEST_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("audio", pa.string()),  # path or URI of the recording
        ("source", pa.string()),  # where the row stands, for people: "metadata.csv:12"
        ("reason", pa.string()),  # why it is rejected, null while it is not
        ("detail", pa.string()),
    ]
)

METADATA_FILE = "metadata.csv"
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")


def read_manifest(location: str, limit: int | None = None) -> pa.Table:
    """The rows of an input, in its own order, with MANIFEST_SCHEMA. Raises ValueError."""
    kind = files.kind(location)
    if kind == fs.FileType.NotFound:
        raise ValueError(f"input {location}: no such file or folder")
    if kind == fs.FileType.Directory:
        rows = _ljspeech(location)
    elif location.endswith((".jsonl", ".json")):
        rows = _jsonl(location)
    else:
        raise ValueError(
            f"input {location}: expected an LJSpeech folder (metadata.csv beside wavs/) or a "
            ".jsonl manifest"
        )
    kept: list[dict[str, Any]] = []
    seen: set[str] = set()
    for row in rows:
        if limit is not None and len(kept) == limit:
            break
        row = dict.fromkeys(MANIFEST_SCHEMA.names) | row
        if row["reason"] is None and row["id"] in seen:
            row |= {
                "reason": "duplicate id",
                "detail": f"id {row['id']!r} stands in an earlier row",
            }
        if row["reason"] is None and not normalise(row["text"]):
            row |= {"reason": "no text", "detail": "the text is empty"}
        if row["reason"] is None:
            seen.add(row["id"])
        kept.append(row)
    if not kept:
        raise ValueError(f"input {location}: it holds no rows")
    if all(row["reason"] == "malformed row" for row in kept):
        raise ValueError(f"input {location}: no row could be read ({kept[0]['detail']})")
    return pa.Table.from_pylist(kept, schema=MANIFEST_SCHEMA)


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. ValueError naming the line that is not."""
    data = files.read_bytes(path)
    try:
        # Not splitlines(): U+2028 and its like may stand in a text.
        return data.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: line {line} is not UTF-8; convert it (iconv -f latin1 -t utf-8)"
        ) from error


def _ljspeech(folder: str) -> Iterator[dict[str, Any]]:
    """`id|text`, `id|text|normalised text` or `id|text|normalised text|speaker`, no header."""
    path = files.join(folder, METADATA_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: an LJSpeech folder holds metadata.csv (id|text lines) and wavs/"
        )
    lines = [line for line in enumerate(read_lines(path), start=1) if line[1].strip()]
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
    recordings = {
        PurePosixPath(name).stem: PurePosixPath(name).name
        for name in sorted(files.list_files(files.join(folder, "wavs")))
        if name.lower().endswith(AUDIO_SUFFIXES)
    }
    for number, line in lines:
        fields = [field.strip() for field in line.split("|")]
        row: dict[str, Any] = {"id": fields[0], "source": f"{METADATA_FILE}:{number}"}
        if not 2 <= len(fields) <= 4 or not fields[0]:
            detail = (
                f"line {number} has {len(fields)} fields separated by '|', expected "
                "id|text[|normalised text[|speaker]]"
            )
            yield row | {"text": "", "reason": "malformed row", "detail": detail}
            continue
        row["text"] = fields[2] if len(fields) > 2 and fields[2] else fields[1]
        row["speaker"] = fields[3] or None if len(fields) == 4 else None
        # Some corpora write the file's name with its suffix as the id.
        stem = fields[0].rpartition(".")[0] if fields[0].lower().endswith(AUDIO_SUFFIXES) else ""
        name = recordings.get(fields[0]) or recordings.get(stem)
        row["audio"] = files.join(folder, "wavs", name or f"{fields[0]}.wav")
        if name is None:
            row |= {"reason": "missing", "detail": f"no recording {row['audio']}"}
        yield row


def _jsonl(path: str) -> Iterator[dict[str, Any]]:
    """Lines of `{"audio", "text", optional "id", "speaker"}`; audio is relative to the manifest."""
    folder, name = path.rsplit("/", 1) if "/" in path else (".", path)
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        row: dict[str, Any] = {"id": f"line-{number}", "text": "", "source": f"{name}:{number}"}
        try:
            data = json.loads(line)
            # A text that is missing is a text that is empty: codecs are trained without any.
            audio, text = data["audio"], data.get("text", "")
            if not isinstance(audio, str) or not isinstance(text, str):
                raise TypeError("audio and text must be strings")
        except (ValueError, KeyError, TypeError) as error:
            detail = (
                f'line {number}: expected {{"audio": ..., "text": ...}} '
                f"({type(error).__name__}: {error})"
            )
            yield row | {"reason": "malformed row", "detail": detail}
            continue
        speaker = data.get("speaker")
        row |= {
            "id": row["id"] if data.get("id") is None else str(data["id"]),
            "text": text,
            "speaker": str(speaker) if speaker else None,
            "audio": audio
            if files.is_uri(audio) or audio.startswith("/")
            else files.join(folder, audio),
        }
        yield row
