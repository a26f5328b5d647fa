"""Parquet in the Hugging Face layout: recordings as `audio: {bytes, path}` beside their texts.

Reads the small columns only. The bytes of a recording are fetched where they are decoded, by row
group and row, see `sheen.core.recordings`.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheen.core import files
from sheen.core.inputs.rows import ROW_SCHEMA

TEXT_COLUMNS = ("text", "transcription", "sentence", "normalized_text")
ID_COLUMNS = ("id",)
SPEAKER_COLUMNS = ("speaker", "speaker_id")


def read(location: str, limit: int | None) -> list[pa.RecordBatch]:
    """A batch for each row group. Raises ValueError for a file that is not of this layout."""
    filesystem, path = files.open_filesystem(location)
    batches: list[pa.RecordBatch] = []
    count = 0
    try:
        with filesystem.open_input_file(path) as stream, pq.ParquetFile(stream) as file:
            embedded = _check_audio(location, file.schema_arrow)
            columns = _columns(location, file.schema_arrow)
            wanted = list(columns.values()) + ([] if embedded else ["audio"])
            for group in range(file.num_row_groups):
                if limit is not None and count >= limit:
                    break
                table = file.read_row_group(group, columns=wanted)
                batches.append(_batch(location, table, columns, group, count, embedded))
                count += len(table)
    except pa.ArrowException as error:
        raise ValueError(f"{location}: no Parquet that can be read ({error})") from error
    return batches


def _check_audio(location: str, schema: pa.Schema) -> bool:
    """Whether recordings are embedded; False when column `audio` holds their paths."""
    if "audio" not in schema.names:
        raise ValueError(
            f"{location}: it has no column 'audio'; its columns are "
            f"{', '.join(schema.names) or 'none'}"
        )
    kind = schema.field("audio").type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return False
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return True
    raise ValueError(
        f"{location}: column 'audio' is {kind}, expected struct<bytes, path> or the path as string"
    )


def _columns(location: str, schema: pa.Schema) -> dict[str, str]:
    """Which column of the file gives a column of the manifest."""
    choices = {"text": TEXT_COLUMNS, "id": ID_COLUMNS, "speaker": SPEAKER_COLUMNS}
    found: dict[str, str] = {}
    for name, names in choices.items():
        column = next((column for column in names if column in schema.names), None)
        if column is None:
            continue
        kind = schema.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        strings = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not strings and (name == "text" or not pa.types.is_integer(kind)):
            raise ValueError(f"{location}: column {column!r} is {kind}, expected string")
        found[name] = column
    if "text" not in found:
        raise ValueError(
            f"{location}: it has no column for the text ({', '.join(TEXT_COLUMNS)}); its columns "
            f"are {', '.join(schema.names)}"
        )
    return found


def _batch(
    location: str, table: pa.Table, columns: dict[str, str], group: int, first: int, embedded: bool
) -> pa.RecordBatch:
    """The rows of one row group, of which `first` stand before in the file."""
    count = len(table)
    nothing = pa.nulls(count, pa.string())
    data: dict[str, pa.Array[Any]] = {
        name: table[column].cast(pa.string()).combine_chunks() if count else nothing
        for name, column in columns.items()
    }
    data["text"] = data["text"].fill_null("")
    for name in ("id", "speaker"):
        if name in data:
            data[name] = pc.if_else(
                pc.equal(data[name], pa.scalar("")), pa.scalar(None, pa.string()), data[name]
            )
    name = files.name(location)
    numbers = range(first + 1, first + count + 1)
    data["source"] = pa.array([f"{name}:{number}" for number in numbers], pa.string())
    if embedded:
        data["audio"] = pa.repeat(location, count)
        data["container"] = pa.repeat("parquet", count)
        data["place"] = pa.array(
            [[group, row] for row in range(count)], ROW_SCHEMA.field("place").type
        )
    else:
        paths = table["audio"].to_pylist()
        data["audio"] = pa.array(
            [files.beside(location, path) if path else None for path in paths], pa.string()
        )
        empty = pc.is_null(data["audio"])
        for name, value in (("reason", "missing"), ("detail", "the row names no recording")):
            data[name] = pc.if_else(empty, value, pa.scalar(None, pa.string()))
    arrays = [data.get(field.name, pa.nulls(count, field.type)) for field in ROW_SCHEMA]
    return pa.RecordBatch.from_arrays(arrays, schema=ROW_SCHEMA)
