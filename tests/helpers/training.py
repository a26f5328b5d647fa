"""The short training run that several tests compare with, what it leaves, and a worker for many."""

import json
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import ray
import torch
from ray.train import Result
from ray.train.v2._internal.execution.local_mode.utils import LocalController
from safetensors.torch import load_file

from sheen.train import launcher
from sheen.train.config import TrainConfig

Given = TypeVar("Given")
Got = TypeVar("Got")


def train_config(data: Path, base: Path, output: Path, **changes: Any) -> TrainConfig:
    """The short run that several tests compare with."""
    fields: dict[str, Any] = {
        "data": str(data),
        "output": str(output),
        "model": str(base),
        "max_steps": 6,
        "accumulation": 2,
        "max_tokens": 512,
        "batch_tokens": 512,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "eval_share": 0.2,
        "eval_every": 3,
        "save_every": 3,
    }
    return TrainConfig(**(fields | changes))


def metrics(output: Path) -> list[dict[str, Any]]:
    """Of a training run: the data's line, then a line per logged step."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of a training run's last model."""
    return load_file(output / "checkpoint" / "model.safetensors")


class Resident:
    """A worker process that stays from run to run.

    Ray Train starts a controller, helpers and workers for every run, and each of these processes
    imports for seconds. For tests of what a run computes and leaves, not of how workers start and
    die: the job's real loop in Ray Train's own local mode, in an actor that is there already.
    """

    def __init__(self) -> None:
        self._control: launcher.Control | None = None

    @cached_property
    def worker(self) -> Any:
        return ray.remote(LocalController).options(num_cpus=0).remote(experiment_name="run")

    def call(self, function: Callable[[], Any]) -> Any:
        """What a function returns there."""
        return ray.get(self.worker.run.remote(function)).return_value

    def train(self, run: Callable[[Given], Got], given: Given) -> Got:
        """`run(given)`, a job's `run` or `main`, with its training in this worker."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launcher, "TorchTrainer", partial(_Here, self.worker))
            # Its board is a process too, and stays while runs end well.
            control, self._control = self._control or launcher.Control(), None
            patch.setattr(launcher, "Control", lambda: control)
            result = run(given)
        if control.failure() is None:
            self._control = control
        return result


class _Here:
    """As much of TorchTrainer as `launcher.fit` uses."""

    def __init__(self, worker: Any, loop: Callable[[dict[str, Any]], Any], **settings: Any) -> None:
        assert settings["scaling_config"].num_workers == 1
        self._worker, self._loop = worker, partial(loop, settings["train_loop_config"])

    def fit(self) -> Result:
        result: Result = ray.get(self._worker.run.remote(self._loop))
        return result
