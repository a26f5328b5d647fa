"""The output of an encode job: its fingerprint, the remaining rows, and the tables of the stages.

Owns the selection of rows, their division into blocks, the columns between the stages, committing a
block of rows, and the check of the output folder: a job resumes its own output and refuses any
other. Blocks depend on the input alone, not on the cluster, so that a block is the same in every
run. Imports neither torch nor a codec, so that writing processes start quickly.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sheen import blocks
from sheen.codec.info import CodecInfo
from sheen.data import dataset
from sheen.data.clips import TRANSIENT
from sheen.data.corpus import MANIFEST_SCHEMA, read_manifest
from sheen.data.recordings import sort_manifest
from sheen.encode.config import EncodeConfig
from sheen.runs.output import (
    RECORDINGS,
    check_fingerprint,
    forget_idle_run,
    is_unused,
    sample_digests,
)
from sheen.storage import files, uris
from sheen.text.steps import NormalizerStep

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
PAGE_FILE = "report.html"
BLOCK_ROWS = 64
"""Most rows of a block: about a minute's work of a CPU."""
MOST_BLOCKS, FEWEST_ROWS = 64, 4
"""A small input is divided into this many blocks, so that every worker gets some of it, with at
least this many rows each."""

_FREE_FIELDS = {
    "config", "input", "output", "jsonl", "num_workers", "gpu", "batch_seconds",
    "form", "codec", "language", "phonemes",
}  # fmt: skip
"""Fields that may differ when a job resumes: they do not affect rows, except `input` and `codec`,
which are compared by content, and `language` and `phonemes`, whose steps are compared."""
_CONTENT = {"rows content", RECORDINGS}

STATUSES = ENCODED, REJECTED = "encoded", "rejected"
"""Values of `status`, by which row files are divided."""

_PCM: list[tuple[str, pa.DataType]] = [
    ("pcm", pa.large_binary()),  # 16-bit mono at the codec's rate: half the bytes of float32
    ("seconds", pa.float64()),  # of the recording, before trimming
    ("read_s", pa.float64()),  # time in each stage, seconds
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
    ("instruction", pa.string()),
    ("n_samples", pa.int64()),
    ("snac_codes", dataset.CODES_TYPE),
    ("source", pa.string()),
    ("reason", pa.string()),
    ("detail", pa.string()),
    ("seconds", pa.float64()),
]
OUTPUT_SCHEMA = pa.schema(_OUTPUT)
"""A row of the output, without its partition."""

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
"""Output rows with their times."""

_DONE: list[tuple[str, pa.DataType]] = [
    ("rows", pa.int64()),
    ("finished", pa.float64()),  # seconds since the epoch
    ("write_s", pa.float64()),
    ("fault", pa.string()),  # of `blocks.commit`
]
DONE_SCHEMA = pa.schema([*_DONE, *_WORK])
"""The report of a committed block to the driver; times are sums over its rows."""


def pack(tables: Iterable[pa.Table]) -> pa.Table:
    """Each table as one row. Ray Data may split and merge tables between stages; a packed table
    stays whole, however large it is."""
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


def read_rows(config: EncodeConfig) -> pa.Table:
    """The manifest rows selected by the flags. Raises ValueError."""
    locations = [uris.absolute(location) for location in config.input]
    try:
        manifest = read_manifest(locations, config.limit, config.form)
    except ValueError as error:
        raise ValueError(f"--input: {error}") from error
    if config.speakers is None:
        return manifest
    return _only(manifest, config.speakers, ", ".join(config.input))


def _only(manifest: pa.Table, speakers: list[str], location: str) -> pa.Table:
    """The rows of some speakers, and faulty rows without a speaker, which might be theirs.

    Raises ValueError for a speaker without a row.
    """
    found = {speaker for speaker in manifest["speaker"].to_pylist() if speaker}
    for speaker in speakers:
        if speaker not in found:
            known = ", ".join(sorted(found)) or "none"
            raise ValueError(f"--speakers {speaker}: {location} has no such speaker (has: {known})")
    nameless = pc.field("speaker").is_null() & pc.field("reason").is_valid()
    return manifest.filter(pc.field("speaker").isin(speakers) | nameless)


def plan_blocks(manifest: pa.Table, output: str) -> list[pa.Table]:
    """The blocks of rows that are not in the output yet, or were rejected for a transient
    reason."""
    done = blocks.merged_keys(output)
    again = blocks.keys_to_retry(output, manifest, TRANSIENT, REJECTED)
    if len(done):
        logger.info("%d of %d rows are done already", len(done), len(manifest))
    if len(again):
        logger.info("retrying %d rows that were missing or not read", len(again))
    size = min(BLOCK_ROWS, max(FEWEST_ROWS, len(manifest) // MOST_BLOCKS))
    # In the order of recordings, so that a worker reads a recording with many rows only once.
    return blocks.plan(sort_manifest(manifest), size, np.setdiff1d(done, again))


def prepare_output(
    output: str,
    config: EncodeConfig,
    manifest: pa.Table,
    codec: CodecInfo,
    normalizer: tuple[NormalizerStep, ...],
) -> None:
    """Record the fingerprint in the output folder. ValueError if the folder is of another job or
    has other files."""
    where = uris.join(output, RUN_FILE)
    forget_idle_run(output, RUN_FILE)
    if not is_unused(output) and not files.exists(where):
        raise ValueError(
            f"--output {output} is not empty, and not of an encode job; give another folder"
        )
    fields = config.model_dump(mode="json")
    decided = {name: value for name, value in fields.items() if name not in _FREE_FIELDS}
    decided |= {
        "min_text_rate": config.limits.min_text_rate,
        "max_text_rate": config.limits.max_text_rate,
        "codec sha256": codec.sha256,
        "sample rate": codec.sample_rate,
        "normalizer": [step.model_dump() for step in normalizer],
        "format": [dataset.FORMAT_VERSION, *OUTPUT_SCHEMA.names],
        "rows": len(manifest),
        "rows content": _digest(manifest),
        RECORDINGS: sample_digests(manifest["audio"].to_pylist()),
    }
    if changed := check_fingerprint(where, decided, _CONTENT):
        raise ValueError(
            f"--output {output} is of another encoding: {changed}. Give the same values to resume "
            "it, or another folder; to start again, delete this one."
        )


def _digest(manifest: pa.Table) -> str:
    """A hash of everything that determines the rows except the recordings: neither their location
    nor whether they exist now, since a missing one may be found later."""
    digest = hashlib.sha256()
    names = (
        "key", "id", "text", "speaker", "instruction", "start", "end", "snac_codes", "reason",
        "channel",
    )  # fmt: skip
    for batch in manifest.select(names).to_batches():
        for row in batch.to_pylist():
            if row["reason"] in TRANSIENT:
                row["reason"] = None
            if row["channel"] is None:
                del row["channel"]  # as in fingerprints from before it counted
            digest.update(repr(tuple(row.values())).encode())
    return digest.hexdigest()
