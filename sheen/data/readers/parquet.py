"""Parquet in the Hugging Face layout: `audio: {bytes, path}` with texts.

Owns which columns hold what. Reads the small columns only; recordings are read where they are
decoded, by row group and row (`sheen.data.recordings`).
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sheen.data.readers.jsonl import place_of
from sheen.data.schema import (
    CHANNEL_KEY,
    CODES_KEY,
    KEYS,
    PART_KEYS,
    PLACE_KEY,
    ROW_SCHEMA,
    FileRows,
    name_of,
    part_of,
    pick,
    text_of,
    unused_keys,
)
from sheen.storage import uris


def read(location: str, limit: int | None) -> FileRows:
    """A batch for each row group. Raises ValueError for a file that is not of this layout."""
    filesystem, path = uris.open_filesystem(location)
    batches: list[pa.RecordBatch] = []
    count = 0
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            schema = file.schema_arrow
            audio, embedded = _audio_column(location, schema)
            columns = field_columns(location, schema)
            columns += _part_columns(location, schema)
            read_too = PART_KEYS if embedded else (*PART_KEYS, PLACE_KEY)
            if not embedded:
                columns += [name for name in (audio, PLACE_KEY) if name in schema.names]
            for group in range(file.num_row_groups):
                if limit is not None and count >= limit:
                    break
                table = file.read_row_group(group, columns=columns)
                batches.append(_batch(location, table, group, count, None if embedded else audio))
                count += len(table)
    except pa.ArrowException as error:
        raise ValueError(f"{location}: cannot be read as Parquet ({error})") from error
    except TypeError as error:
        raise ValueError(f"{location}: {error}") from error
    return FileRows(batches, frozenset(unused_keys(schema.names, read_too)))


def _audio_column(location: str, schema: pa.Schema) -> tuple[str, bool]:
    """The column of recordings, and whether they are embedded; else it holds their paths."""
    column = next((name for name in KEYS["audio"] if name in schema.names), None)
    if column is None:
        codes = (
            f"; its column {CODES_KEY!r} can be trained on as it is, or encoded from .jsonl"
            if CODES_KEY in schema.names
            else ""
        )
        raise ValueError(
            f"{location}: it has no column 'audio'; its columns are "
            f"{', '.join(schema.names) or 'none'}{codes}"
        )
    kind = schema.field(column).type
    if _is_text(kind):
        return column, False
    if column == "audio" and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return column, True
    raise ValueError(
        f"{location}: column {column!r} is {kind}, expected struct<bytes, path> or the path as "
        "string"
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def field_columns(location: str, schema: pa.Schema) -> list[str]:
    """The columns of a file that KEYS knows as text, id, speaker or instruction, and whose type
    fits.

    Raises ValueError when there is none for the text, or none that fits.
    """
    found: list[str] = []
    for name in ("text", "id", "speaker", "instruction"):
        present = [key for key in KEYS[name] if key in schema.names]
        fitting = [key for key in present if _fits(schema.field(key).type, name)]
        if present and not fitting:
            kind = schema.field(present[0]).type
            raise ValueError(f"{location}: column {present[0]!r} is {kind}, expected string")
        found += fitting
    if not any(key in found for key in KEYS["text"]):
        raise ValueError(
            f"{location}: it has no column for the text ({', '.join(KEYS['text'])}); its columns "
            f"are {', '.join(schema.names) or 'none'}"
        )
    return found


def _fits(kind: pa.DataType, name: str) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return _is_text(kind) or pa.types.is_null(kind) or (number and name in ("id", "speaker"))


def _part_columns(location: str, schema: pa.Schema) -> list[str]:
    found = [name for name in PART_KEYS if name in schema.names]
    if "offset" not in found:  # a duration alone is not read, whatever its type
        found = [name for name in found if name != "duration"]
    for name in found:
        kind = schema.field(name).type
        if not (pa.types.is_null(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise ValueError(
                f"{location}: column {name!r} is {kind}, expected "
                f"{'the number of a channel' if name == CHANNEL_KEY else 'seconds'} within the "
                "recording, as numbers; rename it if it is something else"
            )
    return found


def column_fields(rows: Sequence[dict[str, Any]]) -> dict[str, list[str | None]]:
    """The columns text, id, speaker and instruction of rows of `field_columns`."""
    return {
        "text": [text_of(pick(row, "text"), "text") for row in rows],
        "id": [name_of(pick(row, "id"), "id") for row in rows],
        "speaker": [name_of(pick(row, "speaker"), "speaker") for row in rows],
        "instruction": [text_of(pick(row, "instruction"), "instruction") or None for row in rows],
    }


Fault = tuple[str, str]
"""A row's reason and detail."""


def _parts(
    rows: Sequence[dict[str, Any]], number: int
) -> tuple[list[dict[str, Any]], dict[int, Fault]]:
    """Start, end, channel, container and place of each row, the first of which has a number, and
    the faulty ones' faults."""
    parts: list[dict[str, Any]] = []
    faults: dict[int, Fault] = {}
    for place, row in enumerate(rows):
        try:
            container, place_in_it = place_of(row)
            parts.append(part_of(row) | {"container": container, "place": place_in_it})
        except (ValueError, TypeError) as error:
            parts.append({})
            faults[place] = "malformed row", f"row {number + place}: {error}"
    return parts, faults


def _batch(
    location: str, table: pa.Table, group: int, first: int, paths: str | None
) -> pa.RecordBatch:
    """The rows of one row group, of which `first` stand before in the file; `paths`: the column
    that says where the recordings lie, which are embedded without one."""
    count = len(table)
    rows = table.to_pylist()
    data: dict[str, pa.Array[Any]] = {
        name: pa.array(values, pa.string()) for name, values in column_fields(rows).items()
    }
    name = uris.name(location)
    numbers = range(first + 1, first + count + 1)
    data["source"] = pa.array([f"{name}:{number}" for number in numbers], pa.string())
    parts, faults = _parts(rows, first + 1)
    for name in ("start", "end", "channel", "container", "place"):
        data[name] = pa.array([part.get(name) for part in parts], ROW_SCHEMA.field(name).type)
    if paths is None:
        data["audio"] = pa.repeat(location, count)
        data["container"] = pa.repeat("parquet", count)
        data["place"] = pa.array(
            [[group, row] for row in range(count)], ROW_SCHEMA.field("place").type
        )
    else:
        named = [row[paths] or None for row in rows]
        audio = [uris.sibling(location, path) if path else None for path in named]
        data["audio"] = pa.array(audio, pa.string())
        nameless = (place for place, path in enumerate(named) if not path)
        faults |= dict.fromkeys(nameless, ("missing", "the row names no recording"))
    for part, name in enumerate(("reason", "detail")):
        told = [faults[place][part] if place in faults else None for place in range(count)]
        data[name] = pa.array(told, pa.string())
    arrays = [data.get(field.name, pa.nulls(count, field.type)) for field in ROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA)
