"""The files of a run: resumable checkpoints, the best model, the run's fingerprint.

Owns which checkpoints count. A checkpoint is written under another name, or before it is listed;
only checkpoints in `checkpoints.json` are opened, and that file is replaced atomically. So the last
listed checkpoint remains even if the writer is killed. Ray Train's own list is not used: it is
written in place, and a full disk truncates it (docs/decisions/0012). One process writes, in one
thread, whose error goes to the next call; when to save is the training loop's, and what a model's
folder holds is the model's. Refuses to resume a run with other settings or inputs, naming each
difference.
"""

import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pyarrow import fs
from safetensors import SafetensorError
from torch import Tensor

from sheen.runs.output import check_fingerprint
from sheen.storage import files, folders, uris

logger = logging.getLogger(__name__)

INDEX_FILE = "checkpoints.json"
STATE_FILE = "trainer.pt"
"""File of a checkpoint with the state for resuming; the model is in MODEL_FOLDER."""
MODEL_FOLDER = "model"
RUN_FILE = "run.json"
RUN = "run"
"""Folder of an output for the run's checkpoints, and for what resuming compares."""


class StorageFull(OSError):
    """No space for a checkpoint; the message names the folder and the last checkpoint."""


class Files(Protocol):
    """Writes the folder of a model, which need not exist, from the model's weights."""

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Snapshot:
    """A model to save: its weights, in main memory, and the state to resume from (empty if nobody
    asked for it). Both belong to one step, even if they are written later."""

    files: Files
    weights: dict[str, Tensor]
    state: dict[str, Any]


class RunStore:
    """Checkpoints of the run in `output`, a path or URI; the `keep` most recent ones are kept.

    For a single caller: a thread writes what it saves, one snapshot at a time.
    """

    def __init__(self, output: str, keep: int) -> None:
        self.run = uris.join(output, RUN)
        self._keep = keep
        self._pool = ThreadPoolExecutor(1, "sheen-save")
        self._writes: list[Future[None]] = []
        self._waiting: deque[tuple[int, Snapshot, dict[str, float] | None]] = deque(maxlen=1)

    def save(self, step: int, snapshot: Snapshot, best: dict[str, float] | None = None) -> None:
        """Start to write a checkpoint, if the snapshot has a state, and the best model, if `best`
        is the value of its metric.

        A checkpoint waits here for the writes before it, whose error it raises: it lists what they
        have written. The best model alone is written after them. Another one that has not begun yet
        is dropped, so that at most one holds memory meanwhile.
        """
        if snapshot.state:
            self.wait()
            self._writes.append(self._pool.submit(self._write, step, snapshot, best))
        else:
            self._writes = [past for past in self._writes if not past.done() or past.exception()]
            self._waiting.append((step, snapshot, best))
            self._writes.append(self._pool.submit(self._write_waiting))

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise, for the writes that are finished now."""
        return any(write.done() and write.exception() is not None for write in self._writes)

    def wait(self) -> None:
        """Wait for all writes; raises their first error, once. StorageFull if there is no space."""
        writes, self._writes = self._writes, []
        futures.wait(writes)
        for write in writes:
            write.result()

    def close(self) -> None:
        """As `wait`, but an error is only logged, since the caller may be handling its own."""
        try:
            self.wait()
        except Exception:
            logger.exception("the last checkpoint was not written")
        self._pool.shutdown()

    def latest(self) -> str | None:
        """The location of the last complete checkpoint."""
        names = self._index()["checkpoints"]
        return uris.join(self.run, names[-1]) if names else None

    def best(self) -> str | None:
        """The location of the best model."""
        name = self._index()["best"]
        return uris.join(self.run, name) if name else None

    def best_metric(self) -> dict[str, float]:
        """The metric by which the best model was chosen, and its value."""
        metric: dict[str, float] = self._index().get("best_metric", {})
        return metric

    @contextmanager
    def open_latest(self) -> Iterator[Path | None]:
        """The last complete checkpoint as a local folder, within the context."""
        location = self.latest()
        if location is None:
            yield None
        else:
            with folders.local_folder(location) as folder:
                yield folder

    def _write_waiting(self) -> None:
        if self._waiting:  # else it was dropped, and the one in its place is written
            self._write(*self._waiting.popleft())

    def _write(self, step: int, snapshot: Snapshot, best: dict[str, float] | None) -> None:
        if best is not None:
            name = f"best-{step:08d}"
            with self._landing(name) as folder:
                snapshot.files.write(folder, snapshot.weights)
            self._replace(self._index() | {"best": name, "best_metric": best})
        if snapshot.state:
            name = f"step-{step:08d}"
            with self._landing(name) as folder:
                snapshot.files.write(folder / MODEL_FOLDER, snapshot.weights)
                torch.save(snapshot.state, folder / STATE_FILE)
            index = self._index()
            names = [other for other in index["checkpoints"] if other != name] + [name]
            index["checkpoints"] = names[-self._keep :]
            self._replace(index)

    def _index(self) -> dict[str, Any]:
        path = uris.join(self.run, INDEX_FILE)
        if not files.exists(path):
            return {"checkpoints": [], "best": None}
        index: dict[str, Any] = json.loads(files.read_bytes(path))
        return index

    @contextmanager
    def _landing(self, name: str) -> Iterator[Path]:
        """A temporary folder, which at the end becomes `name` completely or not at all. Raises
        StorageFull."""
        target = uris.join(self.run, name)
        filesystem, path = uris.open_filesystem(target)
        local = isinstance(filesystem, fs.LocalFileSystem)
        parent = Path(path).parent if local else None
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="sheen-", suffix=".tmp", dir=parent, ignore_cleanup_errors=True
        ) as landing:
            folder = Path(landing) / name
            folder.mkdir()
            try:
                yield folder
                if local:
                    folders.put_in_place(folder, path)
                else:
                    folders.copy_folder(str(folder), target)
            except (OSError, RuntimeError, SafetensorError) as error:
                code = _no_space(error, Path(landing))
                if code is None:
                    raise
                last = self.latest()
                kept = f"The last complete checkpoint is {last}. " if last else ""
                raise StorageFull(
                    code,
                    f"{target}: {os.strerror(code)} while saving. {kept}Free space, then the same "
                    "command resumes",
                ) from error

    def _replace(self, index: dict[str, Any]) -> None:
        """Write `index`, then delete the checkpoints that it does not list."""
        path = uris.join(self.run, INDEX_FILE)
        files.write_bytes(path, json.dumps(index, indent=2).encode() + b"\n")
        listed = {*index["checkpoints"], index["best"]}
        for name in files.list_names(self.run):
            ours = name.startswith(("step-", "best-")) or name.endswith(".tmp")
            if ours and name not in listed:
                files.delete(uris.join(self.run, name))


def _no_space(error: Exception, folder: Path) -> int | None:
    """The errno if an error was caused by a full disk, else None.

    torch and safetensors raise their own errors without an errno. As long as their partial file
    exists, writing another megabyte fails too.
    """
    if isinstance(error, OSError) and error.errno in files.DISK_FULL:
        return error.errno
    try:
        (folder / "probe").write_bytes(bytes(1 << 20))
    except OSError as found:
        return found.errno if found.errno in files.DISK_FULL else None
    return None


def load(folder: Path) -> dict[str, Any]:
    """The trainer's state, on the host."""
    state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    return state


def check_run_fingerprint(
    output: str, fields: dict[str, Any], free: set[str], content: dict[str, Any]
) -> None:
    """Record the fingerprint of a run; raise ValueError for a run with another one.

    A run without a checkpoint has nothing to resume and starts again, with whatever was mended
    since. `free`: fields that a resumed run may change; `content`: identities of its inputs.
    """
    fixed = {name: value for name, value in fields.items() if name not in free}
    where = uris.join(output, RUN, RUN_FILE)
    if RunStore(output, keep=1).latest() is None:
        files.delete(where)
        # It may list a best model, which is that run's and not this one's.
        files.delete(uris.join(output, RUN, INDEX_FILE))
    changed = check_fingerprint(where, fixed | content, content)
    if changed:
        raise ValueError(
            f"--output {output}: the run there was started with other settings: {changed}. Give "
            "the same values to resume it, or another --output."
        )
