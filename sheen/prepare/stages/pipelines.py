"""The Ray Data pipelines: sources -> cuts, segments -> transcripts, and kept segments -> files.

Owns their blocks, what each task reserves, and resuming: rows that are committed are not computed
again, see `sheen.blocks`, and existing files not written again. The files are for programs that
cannot read a part of a recording; those of rows that are no longer kept are deleted. What is done
in which order is `sheen.prepare.job`'s.
"""

import hashlib
import logging
import time
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext

from sheen import blocks
from sheen.audio.io import encode_audio, flac_rate, resampled
from sheen.data.clips import TRANSIENT, ClipError, ClipReader
from sheen.prepare.config import PrepareConfig
from sheen.prepare.manifest import SEGMENT_BITS, Segments, jsonl_row
from sheen.prepare.output import (
    CUT_SCHEMA,
    CUTS,
    SEGMENT_SCHEMA,
    TRANSCRIPT_SCHEMA,
    TRANSCRIPTS,
    WHERE,
    check_device,
    write_lines,
)
from sheen.prepare.stages.cut import cut_sources
from sheen.prepare.stages.transcribe import TranscribeWorker, read_segments
from sheen.runs import cluster
from sheen.runs.attempts import Attempts
from sheen.storage import files, uris

logger = logging.getLogger(__name__)

Row = dict[str, Any]

SEGMENTS, SEGMENTS_MANIFEST = "segments", "segments.jsonl"
"""The folder of kept segments as files, and their manifest."""

BLOCK_ROWS = 32
"""Segments of a block, at most: minutes of speech."""
MOST_BLOCKS = 64
"""A small input is divided into this many blocks, so that every worker gets some of it."""
CUT_ROWS, CUT_BLOCKS = 16, 256
"""Sources of a block, at most; a block has several sources only beyond this many blocks."""
LONGEST_NAME = 220
"""Bytes; file systems take 255, and a file has a longer name while it is written."""
FILE_ROWS = 64
"""Segments that a task writes to files."""
PROGRESS_S = 10.0
READ_LIMIT_S = 300.0
"""A recording that gives nothing for longer is rejected, and a segment that takes longer."""


def cut_all(
    table: pa.Table, config: PrepareConfig, output: str, changed: Collection[int]
) -> pa.Table:
    """Run the first stage over the sources that are not cut yet; returns CUT_SCHEMA of all.
    `table`: SOURCE_SCHEMA. `changed`: see `sheen.prepare.job`."""
    folder = uris.join(output, CUTS)
    blocks.merge_all(folder)  # what an interrupted run committed
    size = min(CUT_ROWS, max(1, len(table) // CUT_BLOCKS))
    planned = blocks.plan(table, size, _done(folder, table, "recordings", changed))
    if planned:
        _connect()
        do = partial(
            cut_sources,
            settings=config.cut_settings,
            each_channel=config.channels == "each",
            output=folder,
            attempts=Attempts(),
            limit_s=READ_LIMIT_S,
        )
        data = ray.data.from_blocks(planned).map_batches(
            do, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        _wait(data, sum(map(len, planned)), "recordings cut")
        blocks.merge_all(folder)
    return _merged(folder, table, CUT_SCHEMA)


def transcribe_all(
    segments: Segments, config: PrepareConfig, output: str, changed: Collection[int]
) -> pa.Table:
    """Run the second stage over segments that are not transcribed yet; returns TRANSCRIPT_SCHEMA of
    all segments. `changed`: see `sheen.prepare.job`."""
    folder = uris.join(output, TRANSCRIPTS)
    blocks.merge_all(folder)
    size = min(BLOCK_ROWS, max(1, len(segments.table) // MOST_BLOCKS))
    bits = 0 if config.check else SEGMENT_BITS
    done = _done(folder, segments.table, "segments", changed, bits)
    planned = blocks.plan(segments.table, size, done)
    if planned:
        _connect()
        gpu = cluster.use_gpus(config.gpu)
        check_device(output, gpu)
        workers = config.num_workers or cluster.count("GPU" if gpu else "CPU")
        attempts = Attempts()
        data = (
            ray.data.from_blocks(planned)
            .map_batches(
                partial(
                    read_segments,
                    dnsmos=config.dnsmos,
                    overlap=config.overlap,
                    speakers=config.num_speakers is not None,
                    attempts=attempts,
                    limit_s=READ_LIMIT_S,
                ),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=cluster.TASK_CPUS,
            )
            .map_batches(
                TranscribeWorker,
                fn_constructor_kwargs={
                    "asr": config.asr,
                    "language": config.language,
                    "device": None if gpu else "cpu",
                    "attempts": attempts,
                },
                compute=ActorPoolStrategy(size=min(workers, len(planned))),
                batch_size=size,
                batch_format="pyarrow",
                num_cpus=cluster.WORKER_CPUS,
                num_gpus=1 if gpu else 0,
            )
            .map_batches(
                partial(blocks.commit_rows, output=folder),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0.1,
            )
        )
        _wait(data, sum(map(len, planned)), "segments transcribed")
        blocks.merge_all(folder)
    return _merged(folder, segments.table, TRANSCRIPT_SCHEMA)


def export_segments(output: str, rows: list[Row]) -> None:
    """Write SEGMENTS and SEGMENTS_MANIFEST of kept rows. Raises OSError, and ValueError naming a
    row whose recording can no longer be read."""
    folder = uris.join(output, SEGMENTS)
    there = set(files.list_below(folder))
    places = {_file_of(row): row for row in rows}
    located = {uris.child(folder, path): path for path in places}
    for path in there - located.keys():
        files.delete(path)
    missing = [
        {"path": path, **{name: places[path][name] for name in WHERE}}
        for location, path in located.items()
        if location not in there
    ]
    if missing:
        _connect()
        kinds = {name: SEGMENT_SCHEMA.field(name).type for name in WHERE}
        table = pa.Table.from_pylist(missing, schema=pa.schema({"path": pa.string(), **kinds}))
        parts = [table.slice(at, FILE_ROWS) for at in range(0, len(table), FILE_ROWS)]
        data = ray.data.from_blocks(parts).map_batches(
            partial(write_segments, folder=folder),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
        )
        for written in data.iter_batches(batch_size=None, batch_format="pyarrow"):
            blocks.raise_fault(written["fault"].to_pylist())
            for unread in written["unread"].to_pylist():
                if unread is not None:
                    raise ValueError(f"--segments files: {unread}")
    shown = [
        {
            **{name: value for name, value in row.items() if name not in WHERE},
            "audio": f"{SEGMENTS}/{path}",
            "recording": jsonl_row({name: row[name] for name in WHERE}),
        }
        for path, row in places.items()
    ]
    write_lines(uris.join(output, SEGMENTS_MANIFEST), shown)


def _file_of(row: Row) -> str:
    """Its path in SEGMENTS: the id, or a hash of one that is no such path, such as a URL or "../1",
    is hidden there, or is too long for a file system."""
    parts = row["id"].split("/")
    if all(part and part[0] != "." and len(part.encode()) <= LONGEST_NAME for part in parts):
        return f"{row['id']}.flac"
    return f"{hashlib.sha256(row['id'].encode()).hexdigest()[:32]}.flac"


def write_segments(table: pa.Table, *, folder: str) -> pa.Table:
    """Rows of `path` and WHERE -> their errors: `fault` of writing, `unread` of reading."""
    reader = ClipReader()
    found: list[dict[str, Any]] = []
    for row in table.to_pylist():
        fault = unread = None
        try:
            samples, rate = reader.read(row)
            held = flac_rate(rate)
            data = encode_audio(resampled(samples, rate, held), held, "FLAC")
            files.write_bytes(uris.child(folder, row["path"]), data)
        except ClipError as error:
            unread = f"{row['audio']}, for {row['path']}: {error}"
        except OSError as error:
            fault = blocks.fault_of(error)
        found.append({"fault": fault, "unread": unread})
    schema = pa.schema([("fault", pa.string()), ("unread", pa.string())])
    return pa.Table.from_pylist(found, schema=schema)


def _done(
    folder: str, planned: pa.Table, what: str, changed: Collection[int], bits: int = 0
) -> blocks.Keys:
    """The keys of a stage's rows that need no other attempt. `changed`: keys of sources, which are
    those of rows without their last `bits`."""
    done = blocks.merged_keys(folder)
    again = blocks.keys_to_retry(folder, planned, TRANSIENT)
    again = np.union1d(again, done[np.isin(done >> bits, list(changed))])
    if len(again):
        logger.info("retrying %d %s that were missing, not read or replaced", len(again), what)
    done = np.setdiff1d(done, again)
    if len(done):
        logger.info("%d of %d %s are done already", len(done), len(planned), what)
    return done


def _connect() -> None:
    cluster.connect()
    # Ray counts finished blocks as progress and ends a job after half an hour without any; a long
    # recording, or a large model on a CPU, may take longer.
    DataContext.get_current().execution_no_progress_timeout_s = -1


def _wait(data: Any, total: int, what: str) -> None:
    started = said = time.monotonic()
    count = 0
    for written in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        blocks.raise_fault(written["fault"].to_pylist())
        count += sum(written["rows"].to_pylist())
        now = time.monotonic()
        if now - said > PROGRESS_S:
            said = now
            left = (now - started) / count * (total - count)
            logger.info("%d/%d %s, about %.0f s left", count, total, what, left)
    logger.info("%d/%d %s in %.1f s", count, total, what, time.monotonic() - started)


def _merged(folder: str, planned: pa.Table, schema: pa.Schema) -> pa.Table:
    """All rows of a stage, by key. RuntimeError unless each planned row exists exactly once."""
    parts = list(blocks.read_merged(folder))
    keys = [part["key"].to_numpy() for part in parts]
    blocks.check_keys(folder, keys, planned["key"].to_numpy())
    return pa.concat_tables(parts).sort_by("key") if parts else schema.empty_table()
