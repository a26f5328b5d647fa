"""What is measured of a process that trains: seconds of its steps, and its peak memory.

Owns the warm-up (the first step is not counted) and what is subtracted from the memory: what the
process held before it had a model, weights, gradients and the two moments of Adam.
"""

import resource
import threading
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn

PAGE = resource.getpagesize()
SAMPLE_SECONDS = 0.02


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Clock:
    """Made before the model; told of the model, then of the end of every step."""

    def __init__(self) -> None:
        self._base = resident()
        self._ends: list[tuple[float, float]] = []  # wall and processor time
        self._weights = 0
        self._gradients = 0
        self._with_gradient: set[int] = set()
        self._above = 0
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def watch(self, model: nn.Module) -> None:
        for parameter in model.parameters():
            self._weights += parameter.nbytes
            parameter.register_post_accumulate_grad_hook(self._add_gradient)

    def _add_gradient(self, parameter: Tensor) -> None:
        if id(parameter) not in self._with_gradient:  # of a step's later rows it grows by nothing
            self._with_gradient.add(id(parameter))
            self._gradients += parameter.nbytes

    def step(self) -> None:
        """A step has ended, its gradients are gone. The sampling begins after the first one, when
        the moments exist."""
        self._gradients = 0
        self._with_gradient.clear()
        self._ends.append((time.perf_counter(), time.process_time()))
        if len(self._ends) == 1:
            self._sampler.start()

    def _sample(self) -> None:
        while True:
            state = 3 * self._weights + self._gradients
            self._above = max(self._above, resident() - self._base - state)
            time.sleep(SAMPLE_SECONDS)

    def figures(self) -> dict[str, Any]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "steps": len(self._ends) - 1,
            "seconds": self._ends[-1][0] - self._ends[0][0],
            # On a machine with other work, where the wall clock says little.
            "processor_seconds": self._ends[-1][1] - self._ends[0][1],
            "weights": self._weights // 4,
            "peak_bytes": peak,
            # With gradients taken off although the peak comes before the last of them is there.
            "peak_above_16_bytes_per_weight": peak - self._base - 4 * self._weights,
            # With only those taken off that were there at the time, sampled every 20 ms.
            "peak_above_state": self._above,
        }
