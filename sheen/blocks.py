"""Resumable jobs over blocks of rows: plan, commit, merge, count.

Every row has a `key`, its position in the job's input, and every key is processed once. Workers
commit blocks of a few dozen rows, one atomic file each under `blocks/`, so that an interruption
loses little work. At its end the job merges them into row files under `rows/`, large enough that
readers of a million rows open a few hundred. A block's rows replace earlier rows with the same
keys, so merging again after a crash changes nothing.

Owns the file names and the proof that each key is there exactly once. Who may write to a folder,
and whether it holds the same job, is `sheen.runs.output`'s.
"""

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sheen.storage import files, uris

BLOCKS, ROWS = "blocks", "rows"
"""Folders of a job's output: committed blocks until they are merged, and row files."""
MERGED_ROWS = 8192
MERGED_BYTES = 64 << 20
"""A row file is complete when it holds this many rows, or bytes before compression."""
GROUP_ROWS = 256
"""Rows of a Parquet row group: a reader that wants a few rows skips the other groups."""

Keys = NDArray[np.int64]


def plan(rows: pa.Table, size: int, done: Keys) -> list[pa.Table]:
    """The blocks to process: `size` consecutive rows each, without the rows in `done`.

    The boundaries depend on the rows alone, so a block is the same in every run.
    """
    left = [
        block.filter(pa.array(~np.isin(block["key"].to_numpy(), done)))
        for block in (rows.slice(start, size) for start in range(0, len(rows), size))
    ]
    return [block for block in left if len(block)]


def commit(output: str, block: pa.Table) -> str | None:
    """Write a block as one file named by its first key; writing it again changes nothing.

    Returns the error that prevented it, for `raise_fault` on the driver, or None: to Ray, a task
    that raises is a bug.
    """
    try:
        name = f"{pc.min(block['key']).as_py():012d}.parquet"
        _write(uris.join(output, BLOCKS, name), block)
    except OSError as error:
        return fault_of(error)
    return None


def commit_rows(block: pa.Table, *, output: str) -> pa.Table:
    """`commit` as a stage of Ray Data: the number of `rows`, and the `fault` for `raise_fault`."""
    fault = commit(output, block)
    return pa.table({"rows": [len(block)], "fault": pa.array([fault], pa.string())})


def fault_of(error: OSError) -> str:
    return json.dumps([error.errno, error.strerror or str(error), error.filename])


def raise_fault(faults: Iterable[str | None]) -> None:
    """Raise the OSError that a `commit` returned, if any did."""
    for fault in faults:
        if fault is not None:
            raise OSError(*json.loads(fault))


def row_files(output: str, status: str | None = None) -> list[str]:
    """Paths of the row files, sorted: all, or those of one `status`."""
    folder = uris.join(output, ROWS, *([f"status={status}"] if status else []))
    return _parquet_files(folder, recursive=status is None)


def read_columns(output: str, paths: Sequence[str], columns: Sequence[str]) -> pa.Table:
    """Columns of row files, read in parallel. `paths` must not be empty."""
    filesystem, _ = uris.open_filesystem(output)
    source = pads.dataset(list(paths), filesystem=filesystem, format="parquet")
    return source.to_table(columns=list(columns))


def merged_keys(output: str) -> Keys:
    """The keys that row files hold, sorted."""
    if not (paths := row_files(output)):
        return np.zeros(0, np.int64)
    return np.unique(read_columns(output, paths, ["key"])["key"].to_numpy())


def keys_to_retry(
    output: str, planned: pa.Table, reasons: Sequence[str], status: str | None = None
) -> Keys:
    """The keys of rows in the row files (all, or those of one `status`) that were rejected for one
    of `reasons`; without those that are planned with a reason of their own."""
    if not (paths := row_files(output, status)):
        return np.zeros(0, np.int64)
    rows = read_columns(output, paths, ["key", "reason"])
    failed = rows.filter(pc.field("reason").isin(reasons))["key"].to_numpy()
    if "reason" in planned.column_names:
        planned = planned.filter(pc.field("reason").is_null())
    return np.intersect1d(failed, planned["key"].to_numpy())


def merge(output: str, statuses: Sequence[str] = ()) -> Iterator[tuple[str, pa.Table]]:
    """Merge the blocks into row files and delete them; yields the name and rows of each file.

    With `statuses`, blocks have a column `status` and the row files of each status lie in a folder
    of its own, under one name; `name` and rows are then of all statuses. A row file that has some
    of a block's keys is rewritten with the block's rows in their place. Rows are sorted by key.
    """
    paths = _parquet_files(uris.join(output, BLOCKS))
    if not paths:
        return
    owners = _Owners(output)
    replacing: dict[str, list[pa.Table]] = defaultdict(list)
    new: list[pa.Table] = []
    rows = size = 0
    merged: list[str] = []
    replaced: list[str] = []
    for path, block in zip(paths, _read_ahead(output, paths), strict=True):
        names = owners.of(block["key"].to_numpy())
        for name in sorted({name for name in names if name is not None}):
            mask = pa.array([other == name for other in names])
            replacing[name].append(block.filter(mask))
        unowned = pa.array([name is None for name in names])
        new.append(block.filter(unowned))
        (merged if pc.all(unowned).as_py() else replaced).append(path)
        rows, size = rows + len(new[-1]), size + new[-1].nbytes
        if rows >= MERGED_ROWS or size >= MERGED_BYTES:
            yield _write_rows(output, None, new, statuses)
            _delete(output, merged)
            new, merged, rows, size = [], [], 0, 0
    if rows:
        yield _write_rows(output, None, new, statuses)
    for name, parts in replacing.items():
        keys = np.concatenate([part["key"].to_numpy() for part in parts])
        before = _read_rows(output, name, statuses)
        kept = before.filter(pa.array(~np.isin(before["key"].to_numpy(), keys)))
        yield _write_rows(output, name, [kept, *parts], statuses)
    _delete(output, merged + replaced)
    files.delete(uris.join(output, BLOCKS))


def merge_all(output: str, statuses: Sequence[str] = ()) -> None:
    """`merge`, for those who need no rows."""
    for _ in merge(output, statuses):
        pass


def read_merged(
    output: str, statuses: Sequence[str] = (), skip: Iterable[str] = ()
) -> Iterator[pa.Table]:
    """The rows of each row file whose name is not in `skip`, as `merge` yields them."""
    names = {uris.name(path) for path in row_files(output)}
    for name in sorted(names - set(skip)):
        yield _read_rows(output, name, statuses)


def check_keys(output: str, found: Sequence[Keys], expected: Keys) -> None:
    """Raise RuntimeError unless the keys of all row files, each file's once, are `expected`."""
    keys, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *found]), return_counts=True)
    if (counts > 1).any():
        key, problem = keys[counts > 1][0], "is there twice: was another run writing there?"
    elif len(lost := np.setxor1d(keys, expected)):
        key, problem = lost[0], f"is {'missing' if lost[0] in expected else 'not of this input'}:"
    else:
        return
    raise RuntimeError(f"{output}: the row with key {key} {problem} Run again into an empty folder")


class _Owners:
    """Which row file holds a key. A file also owns the key that it is named by: an interrupted
    version of this job may have left one of two statuses, without that row."""

    def __init__(self, output: str) -> None:
        paths = row_files(output)
        self._names = sorted({uris.name(path) for path in paths})
        places = {name: place for place, name in enumerate(self._names)}
        numbered = [name for name in self._names if name.split(".")[0].isdigit()]
        keys = [np.array([int(name.split(".")[0]) for name in numbered], np.int64)]
        owner = [np.array([places[name] for name in numbered], np.int64)]
        for path, table in zip(paths, _read_ahead(output, paths, ["key"]), strict=True):
            keys.append(table["key"].to_numpy())
            owner.append(np.full(len(table), places[uris.name(path)]))
        self._keys, first = np.unique(np.concatenate(keys), return_index=True)
        self._owner = np.concatenate(owner)[first]

    def of(self, keys: Keys) -> list[str | None]:
        if not len(self._keys):
            return [None] * len(keys)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[places] == keys
        owners = self._owner[places]
        return [self._names[n] if here else None for n, here in zip(owners, known, strict=True)]


def _parquet_files(folder: str, recursive: bool = False) -> list[str]:
    paths = files.list_files(folder, recursive=recursive)
    return sorted(path for path in paths if path.endswith(".parquet"))


def _read_ahead(
    output: str, paths: Sequence[str], columns: list[str] | None = None
) -> Iterator[pa.Table]:
    filesystem, _ = uris.open_filesystem(output)

    def read(path: str) -> pa.Table:
        with filesystem.open_input_file(path) as file:
            return pq.ParquetFile(file).read(columns)

    return files.map_ahead(read, paths)


def _places(output: str, name: str, statuses: Sequence[str]) -> dict[str | None, str]:
    if not statuses:
        return {None: uris.join(output, ROWS, name)}
    return {status: uris.join(output, ROWS, f"status={status}", name) for status in statuses}


def _read_rows(output: str, name: str, statuses: Sequence[str]) -> pa.Table:
    parts = []
    for status, place in _places(output, name, statuses).items():
        if files.exists(place):
            filesystem, path = uris.open_filesystem(place)
            with filesystem.open_input_file(path) as file:
                part = pq.ParquetFile(file).read()
            if status is not None:
                part = part.append_column("status", pa.array([status] * len(part), pa.string()))
            parts.append(part)
    return pa.concat_tables(parts)


def _write_rows(
    output: str, name: str | None, parts: Sequence[pa.Table], statuses: Sequence[str]
) -> tuple[str, pa.Table]:
    """Blocks stay until both statuses are written, so their order does not matter."""
    rows = pa.concat_tables([part.cast(parts[-1].schema) for part in parts])
    rows = rows.take(pc.sort_indices(rows["key"]))  # stable
    name = name or f"{rows['key'][0].as_py():012d}.parquet"
    for place_status, place in _places(output, name, statuses).items():
        part = rows
        if place_status is not None:
            part = rows.filter(pc.field("status") == place_status).drop_columns(["status"])
        if len(part):
            _write(place, part)
        else:
            files.delete(place)
    return name, rows


def _write(location: str, table: pa.Table) -> None:
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=GROUP_ROWS)
    files.write_bytes(location, file.getvalue())


def _delete(output: str, paths: Sequence[str]) -> None:
    filesystem, _ = uris.open_filesystem(output)
    for path in paths:
        filesystem.delete_file(path)
