"""What is measured of a process that trains: seconds of its steps, and its peak memory.

Owns the warm-up (the first step is not counted) and what is subtracted from the memory: what the
process held before it had a model, and 16 bytes per weight for itself, its gradient and the two
moments of Adam, whether or not all gradients were there at the peak.
"""

import resource
import time
from pathlib import Path
from typing import Any

from torch import nn

STATE_BYTES = 16
"""Of a float32 weight in training with Adam."""


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Clock:
    """Made before the model; told of the model, then of the end of every step."""

    def __init__(self) -> None:
        self._base = resident()
        self._ends: list[tuple[float, float]] = []  # wall and processor time
        self._weights = 0

    def watch(self, model: nn.Module) -> None:
        self._weights = sum(parameter.numel() for parameter in model.parameters())

    def step(self) -> None:
        self._ends.append((time.perf_counter(), time.process_time()))

    def figures(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "steps": len(self._ends) - 1,
            "seconds": self._ends[-1][0] - self._ends[0][0],
            # On a machine with other work, where the wall clock says little.
            "processor_seconds": self._ends[-1][1] - self._ends[0][1],
            "weights": self._weights,
            "peak_bytes": peak,
            "peak_above_state": peak - self._base - STATE_BYTES * self._weights,
        }
