"""Matrix products with weights that do not change any more, laid out for this CPU beforehand.

Owns the layout and the product, for float32 on x86: of few rows, oneDNN's takes half the time of
what `torch.nn.functional.linear` takes there. Refuses nothing: where it does not apply, the
product is `linear`'s.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""`[B, d]` (or `[..., d]`) to `[B, rows]`."""


def applies(weight: Tensor) -> bool:
    # The two operators are those that torch's own compiler puts in; torch has no public name for
    # them, so a torch without them is no error.
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """The product with `weight` `[rows, d]` as it is now."""
    if not applies(weight):
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def call(x: Tensor) -> Tensor:
        y: Tensor = multiply(x, packed, bias, "none", [], "")
        return y

    return call


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference. It keeps no other copy of its weights."""

    def __init__(self, published: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = published.in_features, published.out_features
        bias = None if published.bias is None else published.bias.detach()
        self._product = product(published.weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers below `module`, where that helps, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and applies(child.weight):
                setattr(parent, name, PackedLinear(child))
