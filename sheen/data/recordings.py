"""The bytes of a recording, from wherever its manifest row points.

Owns reading whole files, byte ranges of tar shards and rows of Parquet files, and opening them to
read parts; and the order of rows in which parts are read for the least. Decodes nothing. The last
container stays open, so rows are best read in manifest order. Only a few rows of a Parquet file and
the page that holds them are in memory, however large its row groups.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheen.data.schema import SPAN_KEYS
from sheen.storage import files, uris

PARQUET_ROWS = 8
"""Recordings of a Parquet file that are in memory at a time."""
PARQUET_BUFFER = 1 << 23
"""Bytes of a column read at once; without a buffer it is a whole row group's. A page is always read
whole, and pyarrow writes up to 1,024 rows into one unless it is given a `write_batch_size`."""
LOCAL_BUFFER, REMOTE_BUFFER = 1 << 16, 1 << 20
"""Bytes of an opened recording that are read at once: a remote request costs as much as many."""


class RecordingReader:
    """Reads the recordings of manifest rows, for one thread at a time.

    Keeps the last tar shard or Parquet file open. Within a Parquet row group it continues from the
    last row; an earlier row is read from the group's first row on.
    """

    def __init__(self) -> None:
        self._location: str | None = None
        self._stream: pa.NativeFile | None = None
        self._parquet: pq.ParquetFile | None = None
        self._group: int | None = None
        self._rows: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = 0  # place of the batch's first row within the group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the open file; the reader can still be used."""
        stream, self._stream = self._stream, None
        self._location = self._parquet = self._group = self._batch = None
        self._rows = iter(())
        if stream is not None:
            stream.close()

    def read(self, row: Mapping[str, Any]) -> bytes:
        """The recording of a row of MANIFEST_SCHEMA, encoded as its file is.

        Needs `audio`, `container` and `place`. Raises FileNotFoundError where nothing is there,
        and OSError for everything else that keeps it from being read.
        """
        location = row["audio"]
        if location is None:
            raise FileNotFoundError("the row names no recording")
        try:
            with uris.network_errors(location):
                if row["container"] is None:
                    return files.read_bytes(location)
                if row["container"] == "tar":
                    return self._from_tar(location, *row["place"])
                return self._from_parquet(location, *row["place"])
        except OSError:
            # A connection that broke is opened anew for the next row.
            self.close()
            raise
        except (ValueError, pa.ArrowException) as error:
            self.close()
            raise OSError(f"{location}: {error}") from error

    def open(self, row: Mapping[str, Any]) -> BinaryIO:
        """The same bytes as a file, of which no more is read than is asked for. To be closed.

        What is in a Parquet file, or on a server that only sends files whole, is in memory.
        """
        location = row["audio"]
        if location is None or row["container"] == "parquet":
            return io.BytesIO(self.read(row))
        try:
            with uris.network_errors(location):
                return _opened(location, row["place"] if row["container"] == "tar" else None)
        except ValueError:  # it can be read in order only, or nothing can have such a name
            return io.BytesIO(self.read(row))

    def _open(self, location: str) -> pa.NativeFile:
        if self._stream is None or self._location != location:
            self.close()
            filesystem, path = uris.open_filesystem(location)
            self._stream = filesystem.open_input_file(path)
            self._location = location
        return self._stream

    def _from_tar(self, location: str, offset: int, size: int) -> bytes:
        stream = self._open(location)
        stream.seek(offset)
        data = bytes(stream.read(size))
        if len(data) < size:
            raise OSError(_ended(location, offset + size))
        return data

    def _from_parquet(self, location: str, group: int, place: int) -> bytes:
        stream = self._open(location)
        if self._parquet is None:
            self._parquet = pq.ParquetFile(stream, buffer_size=PARQUET_BUFFER, pre_buffer=False)
        groups = self._parquet.num_row_groups
        if group >= groups:
            raise OSError(f"{location}: no row group {group} of {groups}; it has changed")
        count = self._parquet.metadata.row_group(group).num_rows
        if place >= count:
            raise OSError(
                f"{location}: no row {place} in row group {group} of {count} rows; it has changed"
            )
        if self._batch is None or group != self._group or place < self._first:
            self._batch, self._first, self._group = None, 0, group
            self._rows = self._parquet.iter_batches(
                PARQUET_ROWS, row_groups=[group], columns=["audio"], use_threads=False
            )
            self._batch = next(self._rows)
        while place >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._rows)
        audio = self._batch.column("audio")[place - self._first].as_py() or {}
        if audio.get("bytes") is not None:
            return bytes(audio["bytes"])
        if audio.get("path"):
            return files.read_bytes(uris.sibling(location, audio["path"]))
        raise FileNotFoundError(f"{location}: row {place} of row group {group} has no recording")


def _opened(location: str, place: list[int] | None) -> BinaryIO:
    """A file, or the bytes of it that `place` says. ValueError where it cannot be sought in."""
    stream = files.open_file(location)
    try:
        size = stream.size()
        offset, length = place or (0, size)
        if offset + length > size:
            raise OSError(_ended(location, offset + length))
        stream.seek(size // 2)
        stream.read(1)
    except BaseException:
        stream.close()
        raise
    local = uris.scheme(location) in ("", "file")
    part = _Part(location, stream, offset, length)
    return io.BufferedReader(part, LOCAL_BUFFER if local else REMOTE_BUFFER)


def _ended(location: str, end: int) -> str:
    return f"{location}: it ends before byte {end}; it has changed since its headers were read"


class _Part(io.RawIOBase):
    """`size` bytes of a file, from `offset` on, as a file."""

    def __init__(self, location: str, stream: pa.NativeFile, offset: int, size: int) -> None:
        self._location = location
        self._stream, self._offset, self._size = stream, offset, size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        with uris.network_errors(self._location):
            self._stream.seek(self._offset + self._at)
            data = self._stream.read(max(0, min(len(buffer), self._size - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


_RECORDING = ("audio", "container", "place", "channel")


def is_part(row: Mapping[str, Any]) -> bool:
    return row["start"] is not None or row["end"] is not None


def recording_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key that is equal for rows that are parts of one recording and channel."""
    return row["audio"], row["container"], tuple(row["place"] or ()), row.get("channel")


def in_recording_order(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of rows: parts of one recording together, where the first of them is, the earlier ones
    first."""
    first: dict[tuple[Any, ...], int] = {}
    order = [
        (first.setdefault(recording_of(row), place), row["start"] or 0.0, place)
        if is_part(row)
        else (place, 0.0, place)
        for place, row in enumerate(rows)
    ]
    return [place for *_, place in sorted(order)]


def sort_manifest(manifest: pa.Table) -> pa.Table:
    """The rows of MANIFEST_SCHEMA, see `in_recording_order`."""
    if not pc.any(pc.or_(manifest["start"].is_valid(), manifest["end"].is_valid())).as_py():
        return manifest
    rows = manifest.select([*_RECORDING, *SPAN_KEYS]).to_pylist()
    return manifest.take(pa.array(in_recording_order(rows)))
