"""The bytes of a recording, from wherever its manifest row points.

Owns reading whole files, byte ranges of tar shards and rows of Parquet files. Decodes nothing. The
last container stays open, so rows are best read in manifest order. Only a few rows of a Parquet
file and the page that holds them are in memory, however large its row groups.
"""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sheen.storage import files, uris

PARQUET_ROWS = 8
"""Recordings of a Parquet file that are in memory at a time."""
PARQUET_BUFFER = 1 << 23
"""Bytes of a column read at once; without a buffer it is a whole row group's. Where a writer made a
single page of a row group, which pyarrow does of up to 1,024 rows unless it is given a
`write_batch_size`, that page is what has to be in memory."""


class RecordingReader:
    """Reads the recordings of manifest rows, for one thread at a time.

    Keeps the last tar shard or Parquet file open. Within a Parquet row group it reads on from the
    last row, for an earlier one from the group's first.
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
        """Let go of what is open; the reader can still be used."""
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
            raise OSError(
                f"{location}: it ends before byte {offset + size}; it has changed since its "
                "headers were read"
            )
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
