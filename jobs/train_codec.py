"""Recordings -> a SNAC codec. See `--help`."""

import sys
from typing import Any

from sheen.train import launcher
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.job import run


def summary(config: CodecTrainConfig, last: dict[str, Any]) -> str:
    return f"codec in {config.output}/codec, log-mel loss {last['mel']:.4f}"


def main(argv: list[str]) -> int:
    return launcher.main("jobs/train_codec.py", argv, CodecTrainConfig, run, summary)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
