"""The command line of the training jobs: parse, run, and an exit status that says how it ended."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from ray.train import TrainingFailedError, WorkerGroupError

from sheen.config import JobConfig, fail, load_config
from sheen.train.launch import Stopped

Config = TypeVar("Config", bound=JobConfig)


def main(
    prog: str,
    argv: list[str],
    config_class: type[Config],
    run: Callable[[Config], dict[str, Any]],
    summary: Callable[[Config, dict[str, Any]], str],
) -> int:
    """0: done; 1: workers failed more often than allowed; 2: the user must change something;
    128 + signal: stopped and resumable."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(config_class, argv, prog)
        print(summary(config, run(config)))
    except ValueError as error:
        return fail(prog, error)
    except Stopped as stopped:
        print(f"{prog}: {stopped}", flush=True)
        return stopped.status
    except TrainingFailedError as error:
        fail(prog, cause(error))
        return 1
    return 0


def cause(error: TrainingFailedError) -> Exception:
    """What a worker raised, instead of Ray Train's account of the whole group."""
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        rank, failure = next(iter(error.worker_failures.items()))
        return RuntimeError(
            f"worker {rank} failed: {failure}\nThe last checkpoint is kept: the same command goes "
            "on from it"
        )
    return error
