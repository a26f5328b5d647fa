"""Optimizers as every training job steps, saves and resumes them.

Owns how they are told to skip their steps once a training diverged, which the device knows
before the host reads it, and the copy of a state that keeps changing. Does not end the run: the
loop does, when it reads the norms.
"""

from typing import Any

import torch
from torch import Tensor


class Divergence:
    """From the first norm of a gradient that is not finite on, no step of a watched optimizer
    changes anything: a caller that reads the norm some steps later finds the weights as they were
    before."""

    def __init__(self, device: torch.device) -> None:
        self.found = torch.zeros((), dtype=torch.bool, device=device)

    def watch(self, norm: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """Before each step of the optimizers, which must be fused."""
        self.found = self.found | ~norm.isfinite()
        for optimizer in optimizers:
            # What torch's GradScaler tells a fused optimizer, which then skips the step.
            optimizer.found_inf = self.found.float()  # type: ignore[attr-defined]


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def load_adam(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an Adam that may not have been fused into one that is."""
    groups = [group | {"fused": True} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})


def on_host(state: Any) -> Any:
    """A copy of `state` (dicts, lists and tuples) whose tensors are in main memory and its own.

    A tensor that is in it twice stays one.
    """
    copies: dict[int, Tensor] = {}

    def copy(part: Any) -> Any:
        if isinstance(part, Tensor):
            if id(part) not in copies:
                copies[id(part)] = part.detach().to("cpu", copy=True)
            return copies[id(part)]
        if isinstance(part, dict):
            return {name: copy(value) for name, value in part.items()}
        if isinstance(part, list | tuple):
            return type(part)(copy(value) for value in part)
        return part

    return copy(state)
