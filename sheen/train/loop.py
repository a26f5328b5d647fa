"""The training loop that both jobs share: steps, the metrics log, saving, and stopping.

Owns when to log, evaluate, save and stop, and what every checkpoint holds in addition to the
model: the step, the rows of `metrics.jsonl` and the metrics window. All ranks run it in step; only
the first one writes. What a step computes, what is measured of a model and how the model is
written belongs to a job's own trainer. A gradient that is not finite ends the run without saving.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from sheen.storage import uris
from sheen.train import checkpoints
from sheen.train.checkpoints import RunStore, StorageFull
from sheen.train.config import RunFields
from sheen.train.distributed import WorkerGroup
from sheen.train.launcher import Control
from sheen.train.learning.metrics import MetricsWindow, Sums, console_line
from sheen.train.learning.metrics_log import MetricsLog
from sheen.train.learning.settings import Schedule, learning_rate
from sheen.train.tracking import open_trackers

logger = logging.getLogger(__name__)

SAVE_EVERY = 200
"""Optimizer steps between checkpoints on a CPU, by default."""
SAVE_MINUTES = 10.0
"""Minutes between them on a GPU, where so many steps are seconds and a save may take as long."""


@dataclass(frozen=True)
class Snapshot:
    """A model to save: `write_model` fills an empty folder, `state` is what resuming needs."""

    write_model: Callable[[Path], None]
    state: dict[str, Any]


def save_interval(config: RunFields, device: torch.device) -> tuple[int | None, float | None]:
    """Optimizer steps between checkpoints, or minutes; the other one is None."""
    if config.save_every is None and config.save_minutes is None:
        return (None, SAVE_MINUTES) if device.type == "cuda" else (SAVE_EVERY, None)
    return config.save_every, config.save_minutes


class Trainer(ABC):
    """One rank of a run. A subclass opens its model and data, then calls `begin`."""

    learner: Any
    schedule: Schedule = "cosine"
    total: int
    """Optimizer steps of the whole run."""

    def __init__(self, config: RunFields, output: str, control: Control) -> None:
        self.config, self.output = config, output
        self.control = control.watched()
        self.group = WorkerGroup()
        self.store = RunStore(uris.join(output, config.run_name), config.keep_checkpoints)
        self._every, self._minutes = save_interval(config, self.group.device)
        self.step = 0
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    def begin(self, state: dict[str, Any] | None, summary: dict[str, Any], total: int) -> None:
        """Start at step 0 with `summary` as the first row, or resume from a checkpoint's state."""
        self.total = total
        self._saved_at = monotonic()
        self.window = MetricsWindow(self.group)
        rows = [summary]
        if state is not None:
            self.step, rows = state["step"], state["rows"]
            self.window.load_state(state["window"])
            self.say(f"resuming after step {self.step}")
        self.log = MetricsLog(self.output, rows, writes=self.group.first)
        self.trackers = open_trackers(
            self.config.trackers if self.group.first else [],
            self.output,
            self.config.run_name,
            self.config.model_dump(mode="json"),
            self.step,
        )

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """What is left to train on, one item per step."""

    @abstractmethod
    def train_step(self, batch: Any, rate: float) -> float:
        """One optimizer step, counted in the window; the gradient norm, equal on all ranks."""

    @abstractmethod
    def training_metrics(self, sums: Sums, seconds: float) -> dict[str, Any]:
        """What a window's sums over all ranks, and the seconds they took, say."""

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """The metrics of the evaluations due at this step, equal on all ranks."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The model as it is. Collective: every rank must call it."""

    @abstractmethod
    def describe(self, row: dict[str, Any]) -> list[str]:
        """A row of metrics in short, for the console."""

    def is_best(self, row: dict[str, Any]) -> bool:
        """Whether a row of metrics makes this the best model so far."""
        return False

    def run(self) -> None:
        config = self.config
        for batch in self.batches():
            norm = self.train_step(batch, self.learning_rate())
            if not np.isfinite(norm):
                self.control.fail(
                    f"the gradient of step {self.step + 1} is {norm}: training diverged. The "
                    f"weights are those of step {self.step}, and the last checkpoint is kept. "
                    f"Start again with a lower --learning-rate (now {config.learning_rate:g}) or "
                    "more --warmup-steps"
                )
                return
            self.step += 1
            self.window.count_step()
            row = self._window_metrics(norm) if self.due(config.log_every) else {}
            with self.window.paused():
                row |= self.evaluate()
            if row:
                self.record(row)
            stop, late = self.group.any(self.control.stop_requested(), self._late())
            # Without a number of steps, only the last one is due by its number.
            best, due = self.is_best(row), stop or late or self.due(self._every or self.total)
            if (best or due) and (failure := self._save(best=best, due=due)):
                self.control.fail(failure)
                return
            if stop and self.step < self.total:
                self.say(f"stopped after step {self.step}, saved")
                return

    def due(self, every: int) -> bool:
        """Whether something is due at this step; everything is at the last one."""
        return self.step % every == 0 or self.step == self.total

    def _late(self) -> bool:
        """Whether the minutes since the last checkpoint are over; the first rank says so."""
        if self._minutes is None or not self.group.first:
            return False
        return monotonic() - self._saved_at >= 60 * self._minutes

    def learning_rate(self) -> float:
        """Of the next step."""
        config = self.config
        return learning_rate(
            self.step, config.learning_rate, config.warmup_steps, self.total, self.schedule
        )

    def record(self, row: dict[str, Any]) -> None:
        """Write a row of metrics to the log, the trackers and the console."""
        numbers = {
            name: float(value) for name, value in row.items() if isinstance(value, int | float)
        }
        self.trackers.scalars(self.step, numbers)
        row = {"event": "step", "step": self.step, "steps": self.total} | row
        self.log.add(row)
        self.say(console_line(row, self.describe(row)))

    def say(self, text: str) -> None:
        if self.group.first:
            logger.info(text)

    def close(self) -> None:
        self.trackers.close()

    def _window_metrics(self, norm: float) -> dict[str, Any]:
        sums, seconds, steps = self.window.end()
        return {
            **self.training_metrics(sums, seconds),
            "gradient_norm": round(norm, 4),
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "seconds_left": round(seconds / steps * (self.total - self.step)),
        }

    def _save(self, *, best: bool, due: bool) -> str:
        """Keep as the best model, as a checkpoint, or both; why the run cannot continue, or ""."""
        failure = ""
        with self.window.paused():
            snapshot = self.snapshot()
            own = {"step": self.step, "rows": self.log.rows, "window": self.window.state()}
            if self.group.first:
                try:
                    if best:
                        with self.store.new_best(self.step) as folder:
                            snapshot.write_model(folder)
                    if due:
                        self.log.sync()
                        self.trackers.sync()
                        with self.store.new_checkpoint(self.step) as folder:
                            snapshot.write_model(folder / checkpoints.MODEL_FOLDER)
                            torch.save(snapshot.state | own, folder / checkpoints.STATE_FILE)
                except StorageFull as error:
                    failure = str(error)
        if due:
            self._saved_at = monotonic()
        return self.group.gather(failure)[0]


def run_trainer(trainer: Callable[..., Trainer], arguments: dict[str, Any]) -> None:
    """What a worker runs: `trainer(**arguments)`, to the end of its run."""
    # A bar per file of weights says nothing in a job's log.
    disable_progress_bar()
    worker = arguments["control"].start(trainer, arguments)
    if worker is None:
        return
    try:
        worker.run()
    finally:
        worker.close()
