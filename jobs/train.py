"""A dataset of SNAC codes -> a speech checkpoint. See `--help`."""

import sys
from typing import Any

from sheen.train import launcher
from sheen.train.config import TrainConfig
from sheen.train.job import run


def summary(config: TrainConfig, last: dict[str, Any]) -> str:
    if config.dry_run:
        return "the run can start"
    return f"checkpoint in {config.output}/checkpoint, loss {last['loss']:.3f}"


def main(argv: list[str]) -> int:
    return launcher.main("jobs/train.py", argv, TrainConfig, run, summary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
