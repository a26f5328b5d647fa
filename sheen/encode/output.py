"""The tables between the stages of encoding, and the files of the output's rows.

Owns the columns and how a block of rows is committed. Imports neither torch nor a codec, so that
the processes that write start quickly.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheen import blocks
from sheen.data import dataset
from sheen.data.corpus import MANIFEST_SCHEMA

STATUSES = ENCODED, REJECTED = "encoded", "rejected"
"""Values of `status`, by which row files are divided."""
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
BLOCK_SCHEMA = pa.schema([*_OUTPUT, ("status", pa.string())])
"""A row of a committed block."""
ENCODED_SCHEMA = pa.schema([*_OUTPUT, ("status", pa.string()), *_WORK])
"""Output rows, and what they took."""

_DONE: list[tuple[str, pa.DataType]] = [
    ("rows", pa.int64()),
    ("finished", pa.float64()),  # seconds since the epoch
    ("write_s", pa.float64()),
    ("fault", pa.string()),  # of `blocks.commit`
]
DONE_SCHEMA = pa.schema([*_DONE, *_WORK])
"""What the driver is told of a committed block; its work is that of all its rows."""


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


def transiently_rejected(output: str) -> NDArray[np.int64]:
    """Keys of the merged rows that were rejected for a TRANSIENT reason."""
    if not (paths := blocks.row_files(output, REJECTED)):
        return np.zeros(0, np.int64)
    rows = blocks.read_columns(output, paths, ["key", "reason"])
    keys: NDArray[np.int64] = rows.filter(pc.field("reason").isin(TRANSIENT))["key"].to_numpy()
    return keys


def write_blocks(packed: pa.Table, *, output: str) -> pa.Table:
    """`write_block` of each; returns DONE_SCHEMA."""
    done = [write_block(table, output) for table in unpack(packed)]
    return pa.Table.from_pylist(done, schema=DONE_SCHEMA)


def write_block(table: pa.Table, output: str) -> dict[str, Any]:
    """Commit a block of ENCODED_SCHEMA; returns a row of DONE_SCHEMA."""
    started = time.perf_counter()
    fault = blocks.commit(output, table.select(BLOCK_SCHEMA.names))
    sums = {name: pc.sum(table[name]).as_py() or 0.0 for name, _ in _WORK if name != "worker"}
    return sums | {
        "rows": len(pc.unique(table["key"])),
        "worker": table["worker"][0].as_py(),
        "write_s": time.perf_counter() - started,
        "finished": time.time(),
        "fault": fault,
    }
