"""Whether the recordings are still those that an output was made of.

Owns what is noted of a recording's file: its size, when it was last changed, and a hash of its size
and first MiB. The task that reads a recording notes it beside the result, before it decodes, so
that a row that ends its process has it too. Here only what has a result is looked up, and a first
MiB is read only where size or time differ. A file that does not answer is not waited for longer
than for its samples. Decodes nothing.
"""

import json
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sheen.prepare.sources import Source
from sheen.runs.output import start_digest
from sheen.storage import files, uris

logger = logging.getLogger(__name__)

STATES = "recordings.json"
"""What the driver has found out itself: of recordings that were moved or touched, and of those that
their task could not note."""
STATE_TYPE = pa.struct(
    [
        ("size", pa.int64()),
        ("changed", pa.int64()),  # nanoseconds, by the filesystem's clock
        ("digest", pa.string()),  # see `sheen.runs.output.start_digest`
    ]
)
_THREADS = 32
"""That wait for a network, for all files of a block at once."""

State = dict[str, Any]


class Result(NamedTuple):
    """What a stage has of a source: all its rows that are alike in these. `key`: the source's.
    `state`: None where it could not be noted."""

    key: int
    good: bool
    state: State | None


def results_of(rows: pa.Table, bits: int) -> list[Result]:
    """`rows`: the `key`, `reason` and `file` of a stage's. `bits`: the last of a key, which are not
    its source's."""
    states = rows.select(["file"]).flatten().rename_columns(STATE_TYPE.names)
    columns = {"key": pc.shift_right(rows["key"], bits), "good": pc.is_null(rows["reason"])}
    table = pa.table(columns | {name: states[name] for name in states.column_names})
    return [
        Result(row.pop("key"), row.pop("good"), None if row["digest"] is None else row)
        for row in table.group_by(table.column_names).aggregate([]).to_pylist()
    ]


def note_files(rows: Sequence[dict[str, Any]], limit_s: float) -> None:
    """Fill in the `file` of rows without one, of STATE_TYPE: None where it cannot be read. A file
    of many rows is read once.

    Rows are rejected as decoding would reject them, where none of their files gives anything for
    `limit_s` seconds. A run that can note such a file cuts it, see `changed_recordings`.
    """
    left = [row for row in rows if row.get("file") is None]
    found = _states(dict.fromkeys((row["audio"] for row in left), ()), limit_s)
    for row in left:
        row["file"] = found.get(row["audio"])
        if row["audio"] not in found and row.get("reason") is None:
            detail = f"{row['audio']}: nothing could be read of it in {limit_s:g} s"
            row |= {"reason": "decoder hung", "detail": detail}


def changed_recordings(
    output: str, sources: Mapping[int, Source], results: Sequence[Result], limit_s: float
) -> list[int]:
    """Keys of the sources that were rejected and whose file is another one than then, or could not
    be noted then.

    Raises ValueError naming the first file that has changed and has a result. One that cannot be
    read now is as it was, and so are those that are left when none gives anything for `limit_s`
    seconds.
    """
    where = uris.join(output, STATES)
    seen: dict[str, State] = json.loads(files.read_bytes(where)) if files.exists(where) else {}
    # Many rows may be in one file: the first of them has its name here.
    first: dict[str, str] = {}
    for source in sources.values():
        first.setdefault(source.location, source.name)
    known: dict[str, list[State]] = {}
    for key, _, state in results:
        location = sources[key].location
        if location not in known:
            known[location] = [seen[first[location]]] if first[location] in seen else []
        if state is not None and state not in known[location]:
            known[location].append(state)
    now = _states(known, limit_s)
    if hung := sorted(known.keys() - now.keys()):
        logger.warning(
            "--input %s: %d recordings gave nothing for %g s; they are taken for unchanged",
            hung[0], len(hung), limit_s,
        )  # fmt: skip
    bad: set[str] = set()
    again: set[int] = set()
    for key, good, noted in results:
        location = sources[key].location
        state, before = now.get(location), noted
        # Of a rejected one it may have seen what is to be cut, in a run that ended before.
        if before is None and good:
            before = seen.get(first[location])
        if state is None or (before is not None and before["digest"] == state["digest"]):
            continue
        if not good:
            again.add(key)
        elif before is not None:
            bad.add(location)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(
            f"--input {min(bad)}{more}: it is another recording than the one that --output "
            f"{output} was made of; put that one back, or give another --output"
        )
    new = {
        first[location]: state
        for location, state in now.items()
        if state is not None and state not in known[location]
    }
    if new:
        files.write_bytes(where, json.dumps(seen | new, indent=0).encode() + b"\n")
    return sorted(again)


def _states(known: Mapping[str, Sequence[State]], limit_s: float) -> dict[str, State | None]:
    """By location, as `_state` finds them; without those that are left when none has come for
    `limit_s` seconds. What reads a file of a hung mount cannot be ended: its thread stays behind,
    and lets the process end."""
    left = deque(known)
    done: SimpleQueue[tuple[str, State | Exception | None]] = SimpleQueue()

    def work() -> None:
        while left:
            try:
                location = left.popleft()
            except IndexError:  # another thread took the last
                return
            try:
                done.put((location, _state(location, known[location])))
            except Exception as error:  # noqa: BLE001 - raised below
                done.put((location, error))

    for _ in range(min(_THREADS, len(known))):
        Thread(target=work, daemon=True).start()
    found: dict[str, State | None] = {}
    while len(found) < len(known):
        try:
            location, state = done.get(timeout=limit_s)
        except Empty:
            left.clear()
            break
        if isinstance(state, Exception):
            raise state
        found[location] = state
    return found


def _state(location: str, known: Sequence[State] = ()) -> State | None:
    """`known`: states it may still have, by size and time."""
    try:
        filesystem, path = uris.open_filesystem(location)
        with uris.network_errors(location):
            info = filesystem.get_file_info(path)
    except (OSError, ValueError):
        return None
    stamp = {"size": info.size, "changed": info.mtime_ns}
    if None not in stamp.values():
        for state in known:
            if stamp.items() <= state.items():
                return state
    digest = start_digest(location)
    return None if digest is None else stamp | {"digest": digest}
