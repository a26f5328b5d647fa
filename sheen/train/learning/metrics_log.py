"""`metrics.jsonl`: continues after a resume without repeated or missing lines.

Owns the file; the training loop decides what is in a row. A module of its own, because a learner
needs no pyarrow.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pyarrow import fs

from sheen.storage import files, uris

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """`metrics.jsonl` of an output folder as a list of rows that survives in every checkpoint."""

    def __init__(self, output: str, rows: list[dict[str, Any]], writes: bool) -> None:
        self.rows = rows
        self._location = uris.join(output, METRICS_FILE)
        filesystem, self._path = uris.open_filesystem(self._location)
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


def best_so_far(
    rows: Sequence[Mapping[str, Any]], saved: Mapping[str, float], metric: str
) -> dict[str, float]:
    """The metric by which a resumed run chooses its best model, and the value to fall below; empty
    for any.

    saved: the metric and the value of the stored best model, as far as known. If it was chosen by
    another metric, the models of the rows' values are gone.
    """
    if saved and metric not in saved:
        return {}
    # By the clock, evaluations after the checkpoint are not repeated at the same steps.
    values = [row[metric] for row in (*rows, saved) if metric in row]
    values = [value for value in values if math.isfinite(value)]
    return {metric: min(values)} if values else {}


def last_metrics(output: str) -> dict[str, Any]:
    """The last line of a run's metrics."""
    rows = files.read_bytes(uris.join(output, METRICS_FILE)).decode().splitlines()
    last: dict[str, Any] = json.loads(rows[-1])
    return last
