"""What a run keeps on disk: resumable checkpoints and the log of metrics.

Owns `trainer.pt` (optimizer, step, metrics so far) beside the model folder of a
checkpoint, `metrics.jsonl`, which a resumed run continues without repeated or missing lines, and
`run.json`, which says how a run was started and refuses to resume it otherwise.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pyarrow import fs

from sheen.core import files
from sheen.core.claim import claim

STATE_FILE = "trainer.pt"
MODEL_FOLDER = "checkpoint"
METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"


class MetricsLog:
    """`metrics.jsonl` of an output folder as a list of rows that survives in every checkpoint."""

    def __init__(self, output: str, rows: list[dict[str, Any]], writes: bool) -> None:
        self.rows = rows
        self._location = files.join(output, METRICS_FILE)
        filesystem, self._path = files.open_filesystem(self._location)
        # Object stores cannot append: there the file is written whole at each checkpoint.
        self._appends = isinstance(filesystem, fs.LocalFileSystem)
        self._writes = writes
        self.sync()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self._writes and self._appends:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Make the file hold exactly the rows; a resumed run thereby drops what it will redo."""
        if self._writes:
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            files.write_bytes(self._location, text.encode())


def save(folder: Path, **parts: Any) -> None:
    """Write the trainer's state into a checkpoint's folder."""
    torch.save(parts, folder / STATE_FILE)


def load(folder: Path) -> dict[str, Any]:
    """The trainer's state, on the host."""
    state: dict[str, Any] = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
    return state


def claim_run(
    output: str, run_name: str, fields: dict[str, Any], free: set[str], content: dict[str, Any]
) -> None:
    """Record what decides the run's weights; refuse to resume one that was started otherwise.

    `free` names the fields that a resumed run may change; `content` is what its inputs hold.
    """
    fixed = {name: value for name, value in fields.items() if name not in free}
    changed = claim(files.join(output, run_name, RUN_FILE), fixed | content, content)
    if changed:
        raise ValueError(
            f"--run-name {run_name} in {output} was started otherwise: "
            f"{changed}. Give the same values to resume it, or another --run-name."
        )


def last_metrics(output: str) -> dict[str, Any]:
    """The last line of a run's metrics."""
    rows = files.read_bytes(files.join(output, METRICS_FILE)).decode().splitlines()
    last: dict[str, Any] = json.loads(rows[-1])
    return last


def not_finite(norm: float, step: int, rate: float) -> str:
    """What to say when the gradient after `step` steps is no number."""
    return (
        f"the gradient of step {step + 1} is {norm}: training diverged. The weights are those of "
        f"step {step}, and the last checkpoint is kept. Start again with a lower --learning-rate "
        f"(now {rate:g}) or more --warmup-steps"
    )
