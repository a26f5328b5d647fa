"""The tables between the stages of encoding, and the files of the output's rows.

Owns the columns and how a block of rows is committed. Imports neither torch nor a codec, so that
the processes that write start quickly.
"""

import io
import json
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sheen.data import dataset
from sheen.data.corpus import MANIFEST_SCHEMA
from sheen.storage import files, uris

ENCODED, REJECTED = "encoded", "rejected"
"""Values of `status`, the partition of the rows."""
TRANSIENT = ("missing", "not read")
"""Reasons that may not hold the next time: the same command retries such rows."""

_PCM: list[tuple[str, pa.DataType]] = [
    ("pcm", pa.large_binary()),  # 16-bit mono at the codec's rate: half the bytes of float32
    ("seconds", pa.float64()),  # of the recording, before trimming
    ("read_s", pa.float64()),  # what the row took of each stage, seconds
    ("decode_s", pa.float64()),
    ("resample_s", pa.float64()),
]
PCM_SCHEMA = pa.unify_schemas([MANIFEST_SCHEMA, pa.schema(_PCM)])
"""Manifest rows that were read."""

_OUTPUT: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),  # of the recording, whose shifts share it
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
    ("n_samples", pa.int64()),
    ("snac_codes", dataset.CODES_TYPE),
    ("source", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("seconds", pa.float64()),
]
OUTPUT_SCHEMA = pa.schema(_OUTPUT)
"""A row of the output, but for its partition."""

STAGES = ("read", "decode", "resample", "encode", "write")
_WORK: list[tuple[str, pa.DataType]] = [
    ("audio_seconds", pa.float64()),  # encoded
    ("worker", pa.string()),
    ("idle_s", pa.float64()),  # of that worker, before this block
    ("read_s", pa.float64()),
    ("decode_s", pa.float64()),
    ("resample_s", pa.float64()),
    ("encode_s", pa.float64()),
]
ENCODED_SCHEMA = pa.schema([*_OUTPUT, ("status", pa.string()), *_WORK])
"""Output rows, and what they took."""

_DONE: list[tuple[str, pa.DataType]] = [
    ("key", pa.int64()),  # of the block's first row
    ("rows", pa.int64()),
    ("finished", pa.float64()),  # seconds since the epoch
    ("write_s", pa.float64()),
    ("fault", pa.string()),  # why it could not be written: JSON of errno and message
]
DONE_SCHEMA = pa.schema([*_DONE, *_WORK])
"""What the driver hears of a block that is written; its work is that of all its rows."""


def pack(tables: Iterable[pa.Table]) -> pa.Table:
    """One row for each table. Ray Data cuts and joins rows as it likes; a packed table stays whole
    on its way, however large it is."""
    buffers = []
    for table in tables:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        buffers.append(sink.getvalue().to_pybytes())
    return pa.table({"block": pa.array(buffers, pa.large_binary())})


def unpack(packed: pa.Table) -> Iterator[pa.Table]:
    for block in packed["block"]:
        yield pa.ipc.open_stream(block.as_buffer()).read_all()


def block_name(first_key: int) -> str:
    return f"{first_key:012d}.parquet"


def written_blocks(rows: str) -> set[str]:
    """Names of the blocks that are committed below a folder of rows."""
    paths = files.list_files(uris.join(rows, f"status={ENCODED}"))
    return {path.rsplit("/", 1)[-1] for path in paths if path.endswith(".parquet")}


def transiently_rejected(rows: str) -> set[int]:
    """Keys of the rows rejected for a TRANSIENT reason."""
    filesystem, _ = uris.open_filesystem(rows)
    found: set[Any] = set()
    for path in files.list_files(uris.join(rows, f"status={REJECTED}")):
        if path.endswith(".parquet"):
            table = pq.read_table(path, columns=["key", "reason"], filesystem=filesystem)
            passing = table.filter(pc.is_in(table["reason"], pa.array(TRANSIENT)))
            found |= set(passing["key"].to_pylist())
    return found


def write_blocks(packed: pa.Table, *, rows: str, first_keys: Sequence[int]) -> pa.Table:
    """`write_block` of each; returns DONE_SCHEMA."""
    done = [write_block(table, rows, first_keys) for table in unpack(packed)]
    return pa.Table.from_pylist(done, schema=DONE_SCHEMA)


def write_block(table: pa.Table, rows: str, first_keys: Sequence[int]) -> dict[str, Any]:
    """Commit a block of ENCODED_SCHEMA below a folder of rows; returns a row of DONE_SCHEMA.

    The rejected rows' file comes first and the encoded rows' file, even with none, last: where it
    is, the block is whole. Both are named by the block's first key, one of the ascending
    `first_keys`, and hold what a repetition would hold, so writing a block twice changes nothing.

    Of a block that is committed, `table` may be the rows that were tried again: those take the
    place of their earlier selves, encoded ones first, so that no moment of dying loses a row. A
    space that runs out, or a folder that must not be written, is what `fault` says.
    """
    started = time.perf_counter()
    first = first_keys[bisect_right(first_keys, pc.min(table["key"]).as_py()) - 1]
    both = (REJECTED, ENCODED)
    places = {name: uris.join(rows, f"status={name}", block_name(first)) for name in both}
    fault = None
    try:
        committed = files.exists(places[ENCODED])
        for status in reversed(both) if committed else both:
            part = table.filter(pc.field("status") == status).select(OUTPUT_SCHEMA.names)
            if committed and files.exists(places[status]):
                part = _joined(places[status], part, table["key"])
            if status == REJECTED and not len(part):
                files.delete(places[status])
                continue
            file = io.BytesIO()
            pq.write_table(part.cast(OUTPUT_SCHEMA), file)
            files.write_bytes(places[status], file.getvalue())
    except OSError as error:
        fault = json.dumps([error.errno, str(error)])
    sums = {name: pc.sum(table[name]).as_py() or 0.0 for name, _ in _WORK if name != "worker"}
    return sums | {
        "key": first,
        "rows": len(pc.unique(table["key"])),
        "worker": table["worker"][0].as_py(),
        "write_s": time.perf_counter() - started,
        "finished": time.time(),
        "fault": fault,
    }


def _joined(place: str, part: pa.Table, keys: "pa.ChunkedArray[Any]") -> pa.Table:
    """The rows of a file but for those of `keys`, and `part`, in the order of their keys."""
    filesystem, path = uris.open_filesystem(place)
    with filesystem.open_input_file(path) as file:
        before = pq.ParquetFile(file).read()
    kept = before.filter(pc.invert(pc.is_in(before["key"], keys.combine_chunks())))
    both = pa.concat_tables([kept.cast(OUTPUT_SCHEMA), part.cast(OUTPUT_SCHEMA)])
    return both.take(pc.sort_indices(both["key"]))
