"""Rows that crash their process: identified, then rejected, so that the job finishes.

Owns the attempt counts. A decoder that crashes or exhausts memory takes its process with it; Ray
restarts the process and runs the block again, endlessly. Each block is therefore registered with
one small actor on the driver's node when it starts. A block that starts a second time is processed
row by row, each row registered first, and a row that was running in MAX_CRASHES crashes is
rejected. A process that was lost with its node is no crash of its row, unless the row was running
on MAX_LOSSES such nodes. The jobs of one driver share the actor's process. Does not catch
exceptions: a row that raises is its stage's business.
"""

import faulthandler
import functools
import os
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import Any, NamedTuple

import pyarrow as pa
import ray

MAX_CRASHES = 2
MAX_LOSSES = 5
"""Nodes lost under a row that are not taken for chance: it would end one after the other."""
REPORT_S = 5.0
"""Seconds that a process waits for the registry before it ends itself."""


_Block = tuple[str, Hashable]


class Crash(NamedTuple):
    seconds: float
    """From the row's start to the end of its process, or, at most, to the next attempt."""
    hung: bool
    """The process ended itself because the row took longer than its limit."""
    node: str
    """Ray's id of the process' node."""


@dataclass
class BlockAttempts:
    """The attempts at one block: how often it was started and, by row, the runs that ended in a
    crash."""

    starts: int = 0
    crashes: dict[Hashable, list[Crash]] = field(default_factory=lambda: defaultdict(list))


class _Running(NamedTuple):
    row: Hashable
    since: float
    """Start of the row, by `time.monotonic`."""
    node: str
    hung_s: float | None = None
    """The limit that the row exceeded, reported by its process before it ends itself."""


class _Registry:
    """Blocks come with their job's id before them."""

    def __init__(self) -> None:
        self._blocks: dict[_Block, BlockAttempts] = defaultdict(BlockAttempts)
        self._at: dict[_Block, _Running] = {}

    def begin(self, block: _Block) -> BlockAttempts:
        history = self._blocks[block]
        if block in self._at:
            row, since, node, hung_s = self._at.pop(block)
            seconds = hung_s or time.monotonic() - since
            history.crashes[row].append(Crash(seconds, hung_s is not None, node))
        history.starts += 1
        return history

    def at(self, block: _Block, row: Hashable, node: str) -> None:
        self._at.pop(block, None)
        if row is not None:
            self._at[block] = _Running(row, time.monotonic(), node)

    def hung(self, job: str, row: Hashable, limit_s: float) -> None:
        for block, running in self._at.items():
            if block[0] == job and running.row == row:
                self._at[block] = running._replace(hung_s=limit_s)

    def end(self, block: _Block) -> None:
        self._blocks.pop(block, None)
        self._at.pop(block, None)


@functools.cache
def _registry(driver: str, node: str) -> Any:
    """One for all jobs of a driver: a process takes a second of a CPU to start."""
    options = {"label_selector": {"ray.io/node-id": node}}
    return ray.remote(_Registry).options(num_cpus=0, **options).remote()


class Attempts:
    """A job's handle to the registry, created by the driver and passed to tasks and actors."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._board = _registry(context.get_job_id(), context.get_node_id())
        self._job = secrets.token_hex(8)

    def begin(self, block: Hashable) -> BlockAttempts:
        """Register a start of the block; its attempts, without crashes that are not its rows'."""
        history: BlockAttempts = ray.get(self._board.begin.remote((self._job, block)))
        if history.crashes:
            # Asked now and not when a process is missed: a node's end is known seconds later.
            alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
            for row, crashes in history.crashes.items():
                history.crashes[row] = _of_the_row(crashes, alive)
        return history

    def at(self, block: Hashable, row: Hashable) -> None:
        """Register the row that runs next, or None. Blocks until it is registered."""
        node = ray.get_runtime_context().get_node_id()
        ray.get(self._board.at.remote((self._job, block), row, node))

    def end(self, block: Hashable) -> None:
        self._board.end.remote((self._job, block))

    @contextmanager
    def limit(self, row: Hashable, seconds: float) -> Iterator[None]:
        """Ends this process if the block of the `with` takes longer than `seconds`.

        The registry is told first, because nothing else could tell this end from a crash. Where
        that cannot be done, because C code holds Python's lock, the process ends soon after
        and counts as crashed.
        """
        timer = Timer(seconds, self._end_process, (row, seconds))
        timer.daemon = True
        faulthandler.dump_traceback_later(seconds + 2 * REPORT_S, exit=True, file=2)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            faulthandler.cancel_dump_traceback_later()

    def _end_process(self, row: Hashable, limit_s: float) -> None:
        try:
            ray.get(self._board.hung.remote(self._job, row, limit_s), timeout=REPORT_S)
        finally:
            faulthandler.dump_traceback(file=2)
            os._exit(1)

    def guard(self, stage: str, table: pa.Table, do: Callable[[pa.Table], pa.Table]) -> pa.Table:
        """`do(table)` on rows with a `key`: the whole table, or row by row after a crash.

        A row that crashes its process gets the reason "`stage` crashed", or "`stage` hung" where
        every run took longer than its `limit`, a detail, and no `pcm`. `do` must pass rows with a
        reason through unchanged.
        """
        block = (stage, table["key"][0].as_py())
        history = self.begin(block)
        if history.starts == 1:
            done = do(table)
        else:
            parts = []
            for place, key in enumerate(table["key"].to_pylist()):
                row = table.slice(place, 1)
                if len(history.crashes.get(key, [])) < MAX_CRASHES:
                    self.at(block, key)
                else:
                    row = _refused(row, stage, history.crashes[key])
                parts.append(do(row))
            done = pa.concat_tables(parts)
        self.end(block)
        return done


def _of_the_row(crashes: list[Crash], alive: Collection[str]) -> list[Crash]:
    """The crashes that are a row's fault; `alive`: the nodes that the cluster has now."""
    own = [crash for crash in crashes if crash.node in alive]
    return crashes if len(crashes) - len(own) >= MAX_LOSSES else own


def is_crash(reason: str | None) -> bool:
    """Whether a row's reason is one of `crash_reason`: to read it again may end this process."""
    return reason is not None and reason.endswith((" crashed", " hung"))


def crash_reason(stage: str, crashes: list[Crash]) -> tuple[str, str]:
    """The reason and the detail for rejecting a row."""
    longest = max(crash.seconds for crash in crashes)
    if all(crash.hung for crash in crashes):
        return f"{stage} hung", f"not done after {longest:g} s, {len(crashes)} times"
    return (
        f"{stage} crashed",
        f"the process that worked on it ended, {len(crashes)} times, each time within "
        f"{longest:.0f} s",
    )


def _refused(row: pa.Table, stage: str, crashes: list[Crash]) -> pa.Table:
    reason, detail = crash_reason(stage, crashes)
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
