"""Every kept segment as a separate file, for programs that cannot read a part of a recording.

Owns the files' names and their manifest. Existing files are not written again, and files of rows
that are no longer kept are deleted.
"""

from functools import partial
from typing import Any

import pyarrow as pa
import ray

from sheen import blocks
from sheen.audio.io import encode_audio
from sheen.data.clips import ClipError, ClipReader
from sheen.prepare.manifest import public
from sheen.prepare.output import SEGMENT_SCHEMA, WHERE, write_lines
from sheen.storage import files, uris

SEGMENTS, SEGMENTS_MANIFEST = "segments", "segments.jsonl"
BLOCK_ROWS = 64

Row = dict[str, Any]


def export_segments(output: str, rows: list[Row]) -> None:
    """Write SEGMENTS and SEGMENTS_MANIFEST of kept rows. Raises OSError, and ValueError naming a
    row whose recording can no longer be read."""
    folder = uris.join(output, SEGMENTS)
    there = set(files.list_below(folder))
    places = {file_of(row): row for row in rows}
    located = {uris.child(folder, path): path for path in places}
    for path in there - located.keys():
        files.delete(path)
    missing = [
        {"path": path, **{name: places[path][name] for name in WHERE}}
        for location, path in located.items()
        if location not in there
    ]
    if missing:
        kinds = {name: SEGMENT_SCHEMA.field(name).type for name in WHERE}
        table = pa.Table.from_pylist(missing, schema=pa.schema({"path": pa.string(), **kinds}))
        parts = [table.slice(at, BLOCK_ROWS) for at in range(0, len(table), BLOCK_ROWS)]
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
            "recording": public({name: row[name] for name in WHERE}),
        }
        for path, row in places.items()
    ]
    write_lines(uris.join(output, SEGMENTS_MANIFEST), shown)


def file_of(row: Row) -> str:
    return f"{row['id']}.flac"


def write_segments(table: pa.Table, *, folder: str) -> pa.Table:
    """Rows of `path` and WHERE -> their errors: `fault` of writing, `unread` of reading."""
    reader = ClipReader()
    found: list[dict[str, Any]] = []
    for row in table.to_pylist():
        fault = unread = None
        try:
            samples, rate = reader.read(row)
            files.write_bytes(uris.child(folder, row["path"]), encode_audio(samples, rate, "FLAC"))
        except ClipError as error:
            unread = f"{row['audio']}, for {row['path']}: {error}"
        except OSError as error:
            fault = blocks.fault_of(error)
        found.append({"fault": fault, "unread": unread})
    schema = pa.schema([("fault", pa.string()), ("unread", pa.string())])
    return pa.Table.from_pylist(found, schema=schema)
