"""Whether a training diverged, known to the device before the host reads it.

Owns how optimizers are told to leave out their steps. Does not end the run: the loop does, when it
reads the norms.
"""

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
            # What torch's GradScaler tells a fused optimizer, which then leaves out the step.
            optimizer.found_inf = self.found.float()  # type: ignore[attr-defined]
