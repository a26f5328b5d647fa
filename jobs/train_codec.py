"""Recordings -> a SNAC codec. See `--help`."""

import sys

from sheen.__main__ import train_codec


def main(argv: list[str]) -> int:
    return train_codec(argv, "jobs/train_codec.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
