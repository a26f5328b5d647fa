"""The training loop that both jobs share: steps, the metrics log, saving, and stopping.

Owns when to log, evaluate, save and stop, and the content of a checkpoint in addition to the model:
the step, the rows of `metrics.jsonl` and the metrics window. All ranks run in step; only the first
one writes, in a thread, while the steps continue. No step waits for the device: norms are read when
something is logged, evaluated or saved. Computing a step, evaluating the model and writing it
belong to a job's own trainer. A gradient that is not finite ends the run without saving.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from sheen.train.checkpoints import RunStore, Snapshot, StorageFull
from sheen.train.config import RunFields, minutes_of
from sheen.train.distributed import WorkerGroup
from sheen.train.launcher import Control
from sheen.train.learning.metrics import MetricsWindow, Sums, console_line
from sheen.train.learning.metrics_log import MetricsLog
from sheen.train.learning.settings import Schedule, learning_rate
from sheen.train.tracking import open_trackers

logger = logging.getLogger(__name__)

SAVE_EVERY = 200
"""Optimizer steps between checkpoints on a CPU, by default."""
EVAL_EVERY = 200
"""Optimizer steps between evaluations, by default, unless checkpoints come by the clock."""
SAVE_MINUTES = 10.0
"""Minutes between checkpoints on a GPU, by default: 200 steps may take only seconds there."""
LOG_EVERY, LOG_LINES = 10, 50
"""Optimizer steps between log lines, and the lines of a run for which they are fewer."""


def save_interval(config: RunFields, device: torch.device) -> tuple[int | None, float | None]:
    """Optimizer steps between checkpoints, or minutes; the other one is None."""
    every = config.save_every
    if every is None:
        return (None, SAVE_MINUTES) if device.type == "cuda" else (SAVE_EVERY, None)
    return (None, minutes_of(every)) if isinstance(every, str) else (every, None)


def log_interval(total: int) -> int:
    """Optimizer steps between log lines of a run of so many steps."""
    return max(1, min(LOG_EVERY, total // LOG_LINES))


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
        self.store = RunStore(output, config.keep_checkpoints)
        self.save_every, self._minutes = save_interval(config, self.group.device)
        """Optimizer steps between checkpoints; None where they come by the clock."""
        self.eval_every = config.eval_every
        if self.eval_every is None and self._minutes is None:
            self.eval_every = EVAL_EVERY
        self.log_every = LOG_EVERY
        self.step = 0
        self.late = False
        """Whether a checkpoint by the clock is due at this step; the same on all ranks."""
        self.best: dict[str, float] = {}
        """The metric by which the best model so far was chosen, and its value."""
        self._norms: list[Tensor] = []
        """Gradient norms that were not read yet."""
        self._norm = 0.0
        torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    def begin(self, state: dict[str, Any] | None, summary: dict[str, Any], total: int) -> None:
        """Start at step 0 with `summary` as the first row of the log, or resume from `state`."""
        self.total = total
        self.log_every = log_interval(total)
        self._saved_at = monotonic()
        self.window = MetricsWindow(self.group)
        rows = [summary]
        if state is not None:
            self.step, rows = state["step"], state["rows"]
            self.window.load_state(state["window"])
            self.log_line(f"resuming after step {self.step}")
        self.log = MetricsLog(self.output, rows, writes=self.group.first)
        self.trackers = open_trackers(
            self.config.trackers if self.group.first else [],
            self.output,
            self.config.model_dump(mode="json"),
            self.step,
        )

    @abstractmethod
    def batches(self) -> Iterator[Any]:
        """The remaining training data, one item per step."""

    @abstractmethod
    def train_step(self, batch: Any, rate: float) -> Tensor:
        """One optimizer step, counted in the window; returns the gradient norm, equal on all ranks.

        It is read some steps later. If it is not finite, neither this step nor the following ones
        may change the weights.
        """

    @abstractmethod
    def training_metrics(self, sums: Sums, seconds: float) -> dict[str, Any]:
        """Metrics from a window's sums over all ranks and its seconds."""

    def evaluation_intervals(self) -> list[int | None]:
        """Optimizer steps between evaluations, for each kind of them; None if they come with
        checkpoints by the clock, since that many steps may take only seconds."""
        return [self.eval_every]

    @abstractmethod
    def evaluate(self) -> dict[str, Any]:
        """The metrics of the evaluations due at this step, equal on all ranks."""

    @abstractmethod
    def snapshot(self, *, resumable: bool) -> Snapshot:
        """The present model; with what resuming needs, which is several times as large, only if
        asked. Collective: every rank must call it."""

    @abstractmethod
    def describe(self, row: dict[str, Any]) -> list[str]:
        """A row of metrics in short, for the console."""

    def is_best(self, row: dict[str, Any]) -> bool:
        """Whether a row of metrics makes this the best model so far; `best` is then its value."""
        return False

    def run(self) -> None:
        try:
            failure = self._take_steps() or self._written()
        finally:
            self.store.close()  # a checkpoint in progress may be the only one
        if failure:
            self.control.fail(failure)
        elif self.step < self.total:
            self.log_line(f"stopped after step {self.step}, saved")

    def _take_steps(self) -> str:
        """Run to the end or to a stop request. Returns why the run cannot continue, or ""."""
        for batch in self.batches():
            norm = self.train_step(batch, self.learning_rate())
            self._norms.append(norm)
            self.step += 1
            self.window.count_step()
            stop, late, unwritten = self.group.any(
                self.control.stop_requested(), self._late(), self.store.failed
            )
            if unwritten:
                return self._written()
            self.late = late and not stop  # a run that is told to stop does not evaluate first
            saves = stop or self.due(self.save_every)
            logs = self.due(self.log_every)
            evaluates = any(map(self.due, self.evaluation_intervals()))
            if (saves or logs or evaluates) and (failure := self._read_norms()):
                return failure
            row = self._window_metrics() if logs else {}
            if evaluates:
                with self.window.paused():
                    row |= self.evaluate()
            if row:
                self.record(row)
            best = self.is_best(row)
            if (best or saves) and (failure := self._save(best=best, due=saves)):
                return failure
            if stop:
                break
        return ""

    def _read_norms(self) -> str:
        """Wait for the steps. Returns an error for the first step that diverged, or ""."""
        norms = torch.stack(self._norms).tolist()
        first = self.step - len(norms)
        self._norms, self._norm = [], norms[-1]
        for taken, norm in enumerate(norms, first):
            if not math.isfinite(norm):
                return (
                    f"the gradient of step {taken + 1} is {norm}: training diverged. The "
                    f"weights are those of step {taken}, and the last checkpoint is kept. Start "
                    f"again with a lower --learning-rate (now {self.config.learning_rate:g}) or "
                    "more --warmup-steps"
                )
        return ""

    def due(self, every: int | None) -> bool:
        """Whether something that comes every so many steps is due, or (None) by the clock; at the
        last step everything is."""
        if self.step == self.total:
            return True
        return self.late if every is None else self.step % every == 0

    def _late(self) -> bool:
        """Whether the minutes since the last checkpoint have passed; only on the first rank."""
        if self._minutes is None or not self.group.first:
            return False
        return monotonic() - self._saved_at >= 60 * self._minutes

    def learning_rate(self) -> float:
        """The learning rate of the next step."""
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
        self.log_line(console_line(row, self.describe(row)))

    def log_line(self, text: str) -> None:
        if self.group.first:
            logger.info(text)

    def close(self) -> None:
        self.trackers.close()

    def _window_metrics(self) -> dict[str, Any]:
        sums, seconds, steps = self.window.end()
        return {
            **self.training_metrics(sums, seconds),
            "gradient_norm": round(self._norm, 4),
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "seconds_left": round(seconds / steps * (self.total - self.step)),
        }

    def _save(self, *, best: bool, due: bool) -> str:
        """Start to write a checkpoint, the best model, or both. Returns an error of the writes
        before, or "". Only a checkpoint waits for these: it lists what they have written."""
        with self.window.paused():
            if due and (failure := self._written()):
                return failure
            snapshot = self.snapshot(resumable=due)
            if due:
                window = self.window.state()
                snapshot.state.update(step=self.step, rows=[*self.log.rows], window=window)
            if self.group.first:
                if due:
                    self.log.sync()
                    self.trackers.sync()
                self.store.save(self.step, snapshot, self.best if best else None)
        if due:
            self._saved_at = monotonic()
        return ""

    def _written(self) -> str:
        """Wait for the writes in progress. Returns their error, or "". Collective."""
        failure = ""
        try:
            self.store.wait()
        except StorageFull as error:
            failure = str(error)
        return self.group.gather(failure)[0]


def run_trainer(trainer: Callable[..., Trainer], arguments: dict[str, Any]) -> None:
    """The function of a worker: create the trainer and run it."""
    # Progress bars per weights file are useless in a job's log.
    disable_progress_bar()
    worker = arguments["control"].start(trainer, arguments)
    if worker is None:
        return
    try:
        worker.run()
    finally:
        worker.close()
