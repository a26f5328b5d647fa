"""What a request's sink gets: samples, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "cancelled", "error"]
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Finished:
    """The last thing a sink gets. `stop`: the model ended; `length`: the budget did."""

    reason: FinishReason
    frames: int
    error: str = ""


Sink = Callable[[Samples | Finished], object]
"""Called from a thread of the engine; it must not block."""
