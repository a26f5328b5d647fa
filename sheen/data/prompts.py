"""Prompt lists: texts to speak, with optional ids, speakers and instructions.

Owns the file formats: .txt of one text per line, .jsonl, Parquet (a file or a folder), and an
LJSpeech folder, whose recordings are ignored. Columns are found as in `sheen.data.schema`. A
malformed file raises. Whether a text can be spoken or a voice exists is the checkpoint's business.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
from pyarrow import fs

from sheen.data.corpus import METADATA_FILE, plain_rows, read_lines
from sheen.data.readers.parquet import field_columns
from sheen.data.schema import KEYS, is_none, pick, row_fields
from sheen.storage import files, uris
from sheen.text.prompt import normalize


@dataclass(frozen=True)
class Prompt:
    """A text; `speaker` is None where the list names none. `id` is the list's own, or the row."""

    id: str
    text: str
    speaker: str | None = None
    instruction: str | None = None


def read_prompts(location: str) -> list[Prompt]:
    """The prompts of a path or URI, in its order. Raises ValueError naming the file and the row."""
    kind = files.kind(location)
    if kind == fs.FileType.NotFound:
        raise ValueError(f"{location}: no such file or folder")
    if kind == fs.FileType.Directory and files.exists(uris.join(location, METADATA_FILE)):
        prompts = list(_ljspeech(location))
    elif kind == fs.FileType.Directory or location.endswith(".parquet"):
        prompts = list(_parquet(location))
    elif location.endswith((".jsonl", ".json")):
        prompts = list(_jsonl(location))
    elif location.endswith(".txt"):
        lines = enumerate(read_lines(location), start=1)
        prompts = [Prompt(f"line-{number}", line) for number, line in lines if line.strip()]
    else:
        raise ValueError(
            f"{location}: expected a .txt, .jsonl or .parquet file, a folder of Parquet files, or "
            "an LJSpeech folder"
        )
    if not prompts:
        raise ValueError(f"{location}: it holds no prompts")
    return prompts


def _ljspeech(folder: str) -> Iterator[Prompt]:
    for row in plain_rows(folder):
        if row["reason"] == "malformed row":
            raise ValueError(f"{folder}, {row['source']}: {row['detail']}")
        yield Prompt(row["id"], row["text"], _speaker(row["speaker"]))


def _jsonl(path: str) -> Iterator[Prompt]:
    """Lines of `{"text", optional "id", "speaker", "instruction"}`."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({error})") from error
        if not isinstance(row, dict) or not isinstance(row.get(_text_key(row)), str):
            raise ValueError(f'{where}: expected an object with a "text", got {line[:80]}')
        yield _prompt(row, f"line-{number}", where)


def _text_key(row: dict[str, Any]) -> str:
    return next((key for key in KEYS["text"] if not is_none(row.get(key))), "text")


def _parquet(location: str) -> Iterator[Prompt]:
    """Rows with a column of texts, and perhaps ids, speakers and instructions."""
    filesystem, path = uris.open_filesystem(location)
    try:
        source = pads.dataset(path, filesystem=filesystem, format="parquet")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{location}: cannot be read as Parquet ({error})") from error
    columns = field_columns(location, source.schema)
    number = 0
    try:
        for batch in source.to_batches(columns=columns):
            for row in batch.to_pylist():
                number += 1
                where = f"{location}, row {number}"
                if not isinstance(row.get(_text_key(row)), str):
                    raise ValueError(f"{where}: its text is {pick(row, 'text')!r}")
                yield _prompt(row, f"row-{number}", where)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{location}: cannot be read as Parquet ({error})") from error


def _prompt(row: dict[str, Any], name: str, where: str) -> Prompt:
    """ValueError naming the row whose text UTF-8 cannot encode, or whose id is not a name."""
    try:
        fields = row_fields(row)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    speaker = _speaker(fields["speaker"])
    return Prompt(fields["id"] or name, fields["text"], speaker, fields["instruction"])


def _speaker(name: str | None) -> str | None:
    """As a dataset's speakers are read, and checkpoints list them."""
    return normalize(name or "") or None
