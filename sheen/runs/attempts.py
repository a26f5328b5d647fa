"""Rows that kill their process: named and refused after a few tries, so that the rest is done.

Owns the count of tries. A decoder that crashes, or takes all memory, takes its process with it;
Ray starts that anew and runs the block again, without end. So each block is noted when it begins in
one small actor beside the driver. One that begins again is done row by row, each row noted before
it, and a row that was the last one noted MOST_DEATHS times is refused.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

MOST_DEATHS = 2


@dataclass
class Past:
    """Of a block: how often it was begun, and how long each row ran that was at work when its
    process ended, seconds."""

    begun: int = 0
    deaths: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))


class _Board:
    def __init__(self) -> None:
        self._past: dict[Hashable, Past] = defaultdict(Past)
        self._at: dict[Hashable, tuple[Hashable, float]] = {}

    def begin(self, block: Hashable) -> Past:
        past = self._past[block]
        if block in self._at:
            row, since = self._at.pop(block)
            past.deaths[row].append(time.monotonic() - since)
        past.begun += 1
        return past

    def at(self, block: Hashable, row: Hashable) -> None:
        self._at.pop(block, None)
        if row is not None:
            self._at[block] = row, time.monotonic()

    def end(self, block: Hashable) -> None:
        self._past.pop(block, None)
        self._at.pop(block, None)


class Tries:
    """A handle to the count; made by the driver, given to tasks and actors."""

    def __init__(self) -> None:
        node = ray.get_runtime_context().get_node_id()
        options = {"label_selector": {"ray.io/node-id": node}}
        self._board: Any = ray.remote(_Board).options(num_cpus=0, **options).remote()

    def begin(self, block: Hashable) -> Past:
        past: Past = ray.get(self._board.begin.remote(block))
        return past

    def at(self, block: Hashable, row: Hashable) -> None:
        """Note the row that comes next, or None; the one before is done. Returns when that is
        known."""
        ray.get(self._board.at.remote(block, row))

    def end(self, block: Hashable) -> None:
        self._board.end.remote(block)

    def guard(
        self,
        stage: str,
        table: pa.Table,
        do: Callable[[pa.Table], pa.Table],
        limit_s: float = float("inf"),
    ) -> pa.Table:
        """`do(table)`, of rows with a `key` each, by itself or row by row.

        A row that kills its process gets a reason, "`stage` crashed", or "hung" where it took
        `limit_s` seconds, a detail, and no `pcm`. `do` must let rows with a reason pass.
        """
        block = (stage, table["key"][0].as_py())
        past = self.begin(block)
        if past.begun == 1:
            done = do(table)
        else:
            parts = []
            for place, key in enumerate(table["key"].to_pylist()):
                row = table.slice(place, 1)
                if len(past.deaths.get(key, [])) < MOST_DEATHS:
                    self.at(block, key)
                else:
                    row = _refused(row, stage, past.deaths[key], limit_s)
                parts.append(do(row))
            done = pa.concat_tables(parts)
        self.end(block)
        return done


def died(stage: str, deaths: list[float], limit_s: float) -> tuple[str, str]:
    """A reason and a detail."""
    if min(deaths) >= limit_s:
        return f"{stage} hung", f"not done after {limit_s:g} s, {len(deaths)} times"
    return (
        f"{stage} crashed",
        f"the process that worked on it ended, {len(deaths)} times, each time within "
        f"{max(deaths):.0f} s",
    )


def _refused(row: pa.Table, stage: str, deaths: list[float], limit_s: float) -> pa.Table:
    reason, detail = died(stage, deaths, limit_s)
    if "audio" in row.column_names and pa.types.is_string(row.schema.field("audio").type):
        detail = f"{row['audio'][0].as_py()}: {detail}"
    values: dict[str, Any] = {"reason": pa.array([reason]), "detail": pa.array([detail])}
    if "pcm" in row.column_names:
        values["pcm"] = pa.nulls(1, row.schema.field("pcm").type)
    for name, value in values.items():
        if name in row.column_names:
            row = row.set_column(row.column_names.index(name), name, value)
        else:
            row = row.append_column(name, value)
    return row
