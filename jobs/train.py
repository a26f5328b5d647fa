"""A dataset of SNAC codes -> a speech checkpoint. See `--help`."""

import logging
import sys

from ray.train import TrainingFailedError

from sheen.config import ConfigError, fail, load_config
from sheen.train.config import TrainConfig
from sheen.train.job import run

PROG = "jobs/train.py"


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(TrainConfig, argv, PROG)
        last = run(config)
    except (ConfigError, ValueError) as error:
        return fail(PROG, error)
    except TrainingFailedError as error:
        fail(PROG, error)
        return 1
    print(f"checkpoint in {config.output}/checkpoint, loss {last['loss']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
