"""`sheen` and `python -m sheen`: see `sheen.commands`."""

import sys

from sheen.commands import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
