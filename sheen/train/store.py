"""The checkpoints of a run on disk or in an object store.

Owns which of them count. A checkpoint is written under another name, or before it is listed; only
what `checkpoints.json` lists is ever opened, and that file is replaced whole. So whatever is killed
while it writes, the last listed checkpoint stays. Ray Train's own list is not used: it is written
in place, and a full disk leaves half of it (docs/decisions/0012). One process writes.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyarrow import fs
from safetensors import SafetensorError

from sheen.core import files

INDEX_FILE = "checkpoints.json"


class StorageFull(OSError):
    """No space for a checkpoint; the message names the folder and what is still there."""


class RunStore:
    """Checkpoints under `run`, a folder's path or URI; the `keep` most recent ones stay."""

    def __init__(self, run: str, keep: int) -> None:
        self.run = run
        self._keep = keep

    def latest(self) -> str | None:
        """The location of the last whole checkpoint."""
        names = self._index()["checkpoints"]
        return files.join(self.run, names[-1]) if names else None

    def best(self) -> str | None:
        """The location of the best model."""
        name = self._index()["best"]
        return files.join(self.run, name) if name else None

    @contextmanager
    def open_latest(self) -> Iterator[Path | None]:
        """The last whole checkpoint as a local folder for the time of the context."""
        location = self.latest()
        if location is None:
            yield None
        else:
            with files.local_folder(location) as folder:
                yield folder

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Add the checkpoint that `write` puts into a folder. Raises StorageFull."""
        name = f"step-{step:08d}"
        self._write(name, write)
        index = self._index()
        names = [other for other in index["checkpoints"] if other != name] + [name]
        index["checkpoints"] = names[-self._keep :]
        self._replace(index)

    def keep_best(self, step: int, write: Callable[[Path], None]) -> None:
        """Replace the best model by the one that `write` puts into a folder. Raises StorageFull."""
        name = f"best-{step:08d}"
        self._write(name, write)
        self._replace(self._index() | {"best": name})

    def _index(self) -> dict[str, Any]:
        path = files.join(self.run, INDEX_FILE)
        if not files.exists(path):
            return {"checkpoints": [], "best": None}
        index: dict[str, Any] = json.loads(files.read_bytes(path))
        return index

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        target = files.join(self.run, name)
        filesystem, path = files.open_filesystem(target)
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
                write(folder)
                if local:
                    files.put_in_place(folder, path)
                else:
                    files.copy_folder(str(folder), target)
            except (OSError, RuntimeError, SafetensorError) as error:
                code = _no_space(error, Path(landing))
                if code is None:
                    raise
                last = self.latest()
                kept = f"The last whole checkpoint is {last}. " if last else ""
                raise StorageFull(
                    code,
                    f"{target}: {os.strerror(code)} while saving. {kept}Free space, then the same "
                    "command goes on",
                ) from error

    def _replace(self, index: dict[str, Any]) -> None:
        """Make `index` the truth, then delete what it does not list."""
        path = files.join(self.run, INDEX_FILE)
        files.write_bytes(path, json.dumps(index, indent=2).encode() + b"\n")
        listed = {*index["checkpoints"], index["best"]}
        for name in files.list_names(self.run):
            ours = name.startswith(("step-", "best-")) or name.endswith(".tmp")
            if ours and name not in listed:
                files.delete_folder(files.join(self.run, name))


def _no_space(error: Exception, folder: Path) -> int | None:
    """The errno of an error for want of space, else None.

    Not every library says: torch and safetensors raise errors of their own. While what they wrote
    is still there, a further file of a megabyte cannot be written either.
    """
    if isinstance(error, OSError) and error.errno in files.FULL:
        return error.errno
    try:
        (folder / "probe").write_bytes(bytes(1 << 20))
    except OSError as found:
        return found.errno if found.errno in files.FULL else None
    return None
