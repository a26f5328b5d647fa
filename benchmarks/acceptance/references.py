"""What the reference models give on a CPU, kept beside this file.

`python benchmarks/gpu_acceptance.py --write-references` makes it anew: a minute on one core. That
is to be done when the reference models or their inputs change (their hashes then differ, and the
parts that need them say so), and never to make a check pass.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PATH = Path(__file__).with_name("references.npz")


def write(digests: dict[str, str], arrays: dict[str, NDArray[Any]], path: Path = PATH) -> None:
    hashes = {name: np.array(digest) for name, digest in digests.items()}
    np.savez_compressed(path, **(hashes | arrays))  # type: ignore[arg-type]


def read(path: Path = PATH) -> dict[str, NDArray[Any]]:
    with np.load(path) as arrays:
        return dict(arrays)


def check(arrays: dict[str, NDArray[Any]], name: str, found: str) -> None:
    """Raise ValueError when the model here is not the one that the references were made with."""
    if str(arrays[name]) != found:
        raise ValueError(
            f"the reference {name} has weights of hash {found}, the references were made with "
            f"{arrays[name]}: make them anew (--write-references)"
        )
