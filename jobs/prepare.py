"""Raw recordings -> segments with transcripts, a manifest for encoding. See `--help`."""

import sys

from sheen.__main__ import prepare


def main(argv: list[str]) -> int:
    return prepare(argv, "jobs/prepare.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
