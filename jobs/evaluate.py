"""Prompts and a checkpoint -> audio, and a report of its quality. See `--help`."""

import sys

from sheen.__main__ import evaluate


def main(argv: list[str]) -> int:
    return evaluate(argv, "jobs/evaluate.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
