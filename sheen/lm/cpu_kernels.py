"""CPU kernels of the speech LM: prepacked matrix products, one gradient for a tied embedding table.

Owns two optimizations. For inference in float32 on x86, weights are laid out for oneDNN
beforehand: with few rows its product takes half the time of `torch.nn.functional.linear`. For
training, a table that is both input embedding and output head gets one gradient: autograd would
make two of the whole table's size, nearly all zeros (670 MB each at the 164k rows of Qwen3-0.6B
with the codec's tokens; a fifth of a 4-layer model's training time went into filling them). Where
neither applies, torch's own operations are used; nothing is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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


class TiedTable:
    """The table `[V, d]` of one forward pass: `look_up` once, then `head`; another for the next.

    Autograd runs what was made later first, so the head's gradient is there when the rows' comes.
    RuntimeError in the backward pass when it is not: the head was made first, or never used.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        self._embedding = embedding
        self._gradient: Tensor | None = None

    @staticmethod
    def fits(embedding: nn.Module, head: Tensor) -> bool:
        """Whether this is a plain embedding on a CPU whose weight is the head.

        On a GPU zeros cost next to nothing, and autograd's own sums are deterministic there.
        """
        return (
            type(embedding) is nn.Embedding
            and embedding.weight is head
            and head.device.type == "cpu"
            and embedding.max_norm is None
            and not (embedding.sparse or embedding.scale_grad_by_freq)
        )

    def look_up(self, ids: Tensor) -> Tensor:
        """`[..., d]` for ids `[...]`, as the embedding does."""
        rows: Tensor = _LookUp.apply(self._embedding.weight, ids, self._embedding.padding_idx, self)  # type: ignore[no-untyped-call]
        return rows

    def head(self) -> Tensor:
        """The table `[V, d]`."""
        whole: Tensor = _Head.apply(self._embedding.weight, self)  # type: ignore[no-untyped-call]
        return whole


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, shared: TiedTable) -> Tensor:
        ctx.shared = shared
        return table.view_as(table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        # Made for this node alone: by a cut of the head, or a sum of what its uses made.
        ctx.shared._gradient = gradient
        return None, None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, ids: Tensor, padding_idx: int | None, shared: TiedTable
    ) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.padding_idx, ctx.shared = padding_idx, shared
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        table, ctx.shared._gradient = ctx.shared._gradient, None
        if table is None:
            raise RuntimeError(
                "the head's gradient is not there: was it made first, or never used?"
            )
        flat, rows = ids.flatten(), gradient.flatten(0, -2)
        if ctx.padding_idx is not None:
            rows = rows * (flat != ctx.padding_idx)[:, None]
        return table.index_add_(0, flat, rows.to(table.dtype)), None, None, None
