"""Recordings -> a SNAC codec. See `--help`."""

import logging
import sys

from ray.train import TrainingFailedError

from sheen.config import ConfigError, fail, load_config
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.job import run

PROG = "jobs/train_codec.py"


def main(argv: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = load_config(CodecTrainConfig, argv, PROG)
        last = run(config)
    except (ConfigError, ValueError) as error:
        return fail(PROG, error)
    except TrainingFailedError as error:
        fail(PROG, error)
        return 1
    print(f"codec in {config.output}/codec, log-mel loss {last['mel']:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
