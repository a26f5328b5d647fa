"""The number format of a model's weights and states: the names that flags have, and what they mean.

Its cost on a GPU: bfloat16 takes half the memory of float32 and runs on the tensor cores. Imports
torch only where a device is at hand, because configs name these formats too.
"""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]
"""`auto`: bfloat16 on a CUDA device, float32 elsewhere."""


def dtype_of(precision: Precision, device: "torch.device") -> "torch.dtype":
    """The format that `precision` means on a device."""
    import torch

    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
