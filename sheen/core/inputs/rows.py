"""The rows that every form of input gives, gathered in columns.

Owns their schema and what is the same in all forms. A file may hold millions of rows: what has
been read is kept as Arrow batches, not as Python objects.
"""

import io
from collections.abc import Iterator
from typing import Any, cast

import pyarrow as pa

from sheen.core import files

ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # null where the input names none; the manifest then gives one
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("audio", pa.string()),  # path or URI of the file with the recording; null with codes
        # null: the file is the recording; "tar": place is its byte range, offset and size;
        # "parquet": place is row group and row within it, column `audio`
        ("container", pa.string()),
        ("place", pa.list_(pa.int64())),
        ("start", pa.float64()),  # seconds within the recording; null: its beginning
        ("end", pa.float64()),  # null: its end
        ("snac_codes", pa.list_(pa.list_(pa.int16()))),  # of rows that bring codes, else null
        ("source", pa.string()),  # where the row stands, for people: "metadata.csv:12"
        ("reason", pa.string()),  # why it is rejected, null while it is not
        ("detail", pa.string()),
    ]
)

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")

BATCH_ROWS = 1 << 14
STREAM_BUFFER = 1 << 20  # bytes


class RowBuilder:
    """Takes rows of one file until it has `limit` of them; what a row lacks is null."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._count = 0
        self._columns: dict[str, list[Any]] = {}
        self._batches: list[pa.RecordBatch] = []
        self._begin()

    @property
    def full(self) -> bool:
        return self._count == self._limit

    def add(self, row: dict[str, Any]) -> None:
        for name, column in self._columns.items():
            column.append(row.get(name))
        self._count += 1
        if self._count % BATCH_ROWS == 0:
            self._flush()

    def finish(self) -> list[pa.RecordBatch]:
        self._flush()
        return self._batches

    def _begin(self) -> None:
        self._columns = {name: [] for name in ROW_SCHEMA.names}

    def _flush(self) -> None:
        if self._columns["source"]:
            self._batches.append(pa.RecordBatch.from_pydict(self._columns, schema=ROW_SCHEMA))
        self._begin()


def text_of(value: Any, name: str) -> str:
    """A field of the user's that must be a string that UTF-8 can write."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    value.encode()  # JSON can spell half of a surrogate pair: UnicodeEncodeError, a ValueError
    return value


def name_of(value: Any, name: str) -> str | None:
    """An id or a speaker, which may be a number; None where there is none."""
    return None if value is None or value == "" else text_of(str(value), name)


def buffered(stream: pa.NativeFile, size: int) -> io.BufferedReader:
    """A file as Python's own, which reads `size` bytes at once."""
    # It has what a raw stream has, but is not one by name.
    return io.BufferedReader(cast(io.RawIOBase, stream), size)


def iter_lines(location: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, of a UTF-8 file. ValueError naming the line that is not."""
    filesystem, path = files.open_filesystem(location)
    # A binary reader's lines end at line feeds only: U+2028 and its like may stand in a text.
    with filesystem.open_input_stream(path) as raw, buffered(raw, STREAM_BUFFER) as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{location}: line {number} is not UTF-8; convert it (iconv -f latin1 -t utf-8)"
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")
