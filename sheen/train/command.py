"""The command line of the training jobs: parse, run, and an exit status that says how it ended."""

from collections.abc import Callable
from typing import Any, TypeVar

from ray.train import TrainingFailedError, WorkerGroupError

from sheen.config import fail, load_config
from sheen.core import files
from sheen.exits import run_job
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.config import TrainConfig
from sheen.train.store import RunStore

Config = TypeVar("Config", TrainConfig, CodecTrainConfig)


def main(
    prog: str,
    argv: list[str],
    config_class: type[Config],
    run: Callable[[Config], dict[str, Any]],
    summary: Callable[[Config, dict[str, Any]], str],
) -> int:
    """As `run_job`; and 1: workers failed more often than allowed."""

    def job() -> int:
        config = load_config(config_class, argv, prog)
        try:
            print(summary(config, run(config)))
        except TrainingFailedError as error:
            fail(prog, RuntimeError(f"{_cause(error)}\n{_left(config)}"))
            return 1
        return 0

    return run_job(prog, job)


def _cause(error: TrainingFailedError) -> str:
    """What a worker raised, instead of Ray Train's account of the whole group."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = next(iter(error.worker_failures.items()))
        return f"worker {rank} failed: {failure}"
    return str(error)


def _left(config: TrainConfig | CodecTrainConfig) -> str:
    """What a failed run leaves to go on from."""
    run = files.join(files.absolute(config.output), config.run_name)
    last = RunStore(run, config.keep_checkpoints).latest()
    if last is None:
        return "There is no checkpoint yet: the same command begins anew"
    return f"The last checkpoint is {last}: the same command resumes from it"
