"""The tables between the stages of an evaluation, and the files of its rows.

Owns the columns and how a block of rows is written. Imports neither torch nor a model, so that the
processes that write start quickly.
"""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from sheen.storage import files, uris

ROWS, AUDIO = "rows", "audio"
"""Folders of an evaluation's output."""

_PROMPT: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),  # position in the list: unique, whatever the ids are
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
]
PROMPT_SCHEMA = pa.schema(_PROMPT)

_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_RESULT: list[tuple[str, pa.DataType]] = [
    ("reason", pa.string()),  # why it was not spoken, null when it was
    ("detail", pa.string()),
    ("ended_with_eos", pa.bool_()),  # else cut off at its token limit
    ("expected_seconds", pa.float64()),
    ("seconds", pa.float64()),
    ("speaking", pa.float64()),
    ("pause", pa.float64()),
    ("clipped", pa.float64()),
    ("asr", pa.string()),
    ("transcript", pa.string()),
    ("identified_speaker", pa.string()),
    ("audio", _AUDIO),  # FLAC, as the `audio` of Hugging Face datasets
]
ROW_SCHEMA = pa.schema([*_PROMPT, *_RESULT])


def write_rows(table: pa.Table, *, output: str, audio_files: bool) -> pa.Table:
    """Write a block, whole or not at all, as one file named by its first key.

    Returns its keys, each with the `fault` that kept the block from being written, JSON of errno
    and message, or null. With `audio_files` the audio goes into files of its own first, and the
    rows keep their paths.
    """
    fault = None
    try:
        _write(table, output, audio_files)
    except OSError as error:
        fault = json.dumps([error.errno, str(error)])
    done = table.select(["key"])
    return done.append_column("fault", pa.array([fault] * len(done), pa.string()))


def _write(table: pa.Table, output: str, audio_files: bool) -> None:
    if audio_files:
        rows = table.to_pylist()
        for row in rows:
            if row["audio"] is not None:
                name = "/".join([*filter(None, [row["speaker"]]), row["audio"]["path"]])
                files.write_bytes(uris.join(output, AUDIO, name), row["audio"]["bytes"])
                row["audio"] = {"bytes": None, "path": name}
        table = pa.Table.from_pylist(rows, schema=ROW_SCHEMA)
    file = io.BytesIO()
    pq.write_table(table, file)
    name = f"{table['key'][0].as_py():09d}.parquet"
    files.write_bytes(uris.join(output, ROWS, name), file.getvalue())
