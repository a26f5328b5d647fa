"""Test modules' functions in two processes at once, of which this one is the first.

The other one imports for seconds, so that it is started once for all of them.
"""

import importlib.util
from pathlib import Path

from torch import multiprocessing

from helpers.example import ROOT

TRAIN = ROOT / "tests" / "unit" / "train"
MODULES = TRAIN / "test_learner.py", TRAIN / "test_codec_decoder.py"
"""Each has a function `of_two(rank, folder)`."""


def of_all(rank: int, folder: Path) -> None:
    """By their paths, since an installed package may be called `tests` too."""
    for path in MODULES:
        spec = importlib.util.spec_from_file_location("spawned", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.of_two(rank, str(folder / path.stem))


def take_two(folder: Path) -> None:
    """What each module's `of_two` leaves, in a folder of the module's name."""
    for path in MODULES:
        (folder / path.stem).mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=of_all, args=(1, folder), daemon=True)
    other.start()
    of_all(0, folder)
    other.join()
    assert other.exitcode == 0
