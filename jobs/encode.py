"""Recordings -> a Parquet dataset of SNAC codes. See `--help`."""

import sys

from sheen.__main__ import encode


def main(argv: list[str]) -> int:
    return encode(argv, "jobs/encode.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
