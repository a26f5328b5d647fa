"""One gradient of a table that is input embedding and output head at once.

Owns the two uses of such a table in a training step on a CPU. Left to autograd, each use makes a
gradient of the table's whole size, nearly all zeros: 670 MB in fresh pages each, at the 164k rows
of Qwen3-0.6B with the codec's tokens. In a profile of 4 such layers a fifth of the time went into
filling them. Here the gradient of the head takes that of the looked up rows in.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class TiedTable:
    """The table `[V, d]` of one forward pass: `look_up` once, then `head`; another for the next.

    Autograd runs what was made later first, so the head's gradient is there when the rows' comes.
    RuntimeError in the backward pass when it is not: the head was made first, or left out.
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
        rows: Tensor = _LookUp.apply(self._embedding.weight, ids, self._embedding.padding_idx, self)
        return rows

    def head(self) -> Tensor:
        """The table `[V, d]`."""
        whole: Tensor = _Head.apply(self._embedding.weight, self)
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
            raise RuntimeError("the head's gradient is not there: was it made first, or left out?")
        flat, rows = ids.flatten(), gradient.flatten(0, -2)
        if ctx.padding_idx is not None:
            rows = rows * (flat != ctx.padding_idx)[:, None]
        return table.index_add_(0, flat, rows.to(table.dtype)), None, None, None
