"""A dataset of SNAC codes -> a speech checkpoint. See `--help`."""

import sys

from sheen.__main__ import train


def main(argv: list[str]) -> int:
    return train(argv, "jobs/train.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
