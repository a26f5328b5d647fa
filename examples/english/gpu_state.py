"""What resuming a run of train_on_gpu.py needs, in parts of a size that any carrier takes.

Owns which state counts: `state.json` is replaced atomically once all of a state's parts are
written, and only then are the parts of the one before deleted.
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch
from code_pack import read_parts, write_parts

INDEX = "state.json"


class StateParts:
    """A folder with the last state."""

    def __init__(self, folder: Path, part_bytes: int) -> None:
        self._folder, self._part_bytes = folder, part_bytes

    def save(self, state: dict[str, Any], step: int) -> None:
        """`state` holds tensors, numbers, strings, lists and dicts."""
        stream = io.BytesIO()
        torch.save(state, stream)
        content = stream.getvalue()
        parts = write_parts(content, self._folder, f"step-{step:08d}", self._part_bytes)
        names = [path.name for path in parts]
        index = {"parts": names, "sha256": hashlib.sha256(content).hexdigest()}
        fresh = self._folder / f"{INDEX}.tmp"
        fresh.write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        fresh.replace(self._folder / INDEX)
        for path in self._folder.glob("step-*"):
            if path.name not in names:
                path.unlink()

    def load(self) -> dict[str, Any] | None:
        """None where nothing was saved. ValueError naming what is missing or damaged."""
        index_path = self._folder / INDEX
        if not index_path.exists():
            return None
        index = json.loads(index_path.read_text("utf-8"))
        paths = [self._folder / name for name in index["parts"]]
        if missing := [str(path) for path in paths if not path.exists()]:
            raise ValueError(f"{index_path}: {', '.join(missing)} is missing: bring all parts")
        content = read_parts(paths)
        if hashlib.sha256(content).hexdigest() != index["sha256"]:
            raise ValueError(f"{self._folder}: the parts are damaged or of several states")
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), map_location="cpu", weights_only=True
        )
        return state
