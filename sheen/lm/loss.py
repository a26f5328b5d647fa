"""The loss: cross-entropy per codebook level, under a masked or a full softmax.

Owns both and their counts. Masked, the default, normalises over the rows that are legal at a slot,
the distribution that a masked decoder samples from: 4,097 rows where a frame may begin (level 0 and
`<audio_end>`), 4,096 elsewhere, instead of the 164k of the whole vocabulary. Full normalises over
all rows, so that engines which decode without a mask can use the model. Sums are returned with
target counts; dividing happens once, by the count over all ranks and accumulation steps.

Owns also the one gradient of a table that is both input embedding and output head: autograd would
make two of the whole table's size, nearly all zeros (670 MB each at the 164k rows of Qwen3-0.6B
with the codec's tokens; a fifth of a 4-layer model's training time went into filling them).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from sheen.codec.layout import Softmax, TokenLayout
from sheen.codec.transfer import to_device

IGNORE_INDEX = -100
"""Label of a position that carries no loss (torch's own convention)."""

CHUNK = 2048
"""Targets scored at once by a full softmax: 1.3 GB of float32 logits at 164k rows."""


@dataclass(frozen=True)
class Targets:
    """What the positions of a row of `T` tokens predict, one pair of tensors `[n]` per level.

    `positions` are those of the predicting states; `rows` count from the first legal row of the
    level's slots, which at level 0 is `<audio_end>`.
    """

    positions: list[Tensor]
    rows: list[Tensor]

    def to(self, device: torch.device) -> "Targets":
        return Targets(
            [to_device(tensor, device) for tensor in self.positions],
            [to_device(tensor, device) for tensor in self.rows],
        )

    @property
    def counts(self) -> list[int]:
        """Targets of each level."""
        return [len(rows) for rows in self.rows]

    def __len__(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, per codebook level; `<audio_end>` counts to level 0.

    `loss` `[levels]` in nats, with gradient; `count` `[levels]`; `ends` and `ends_right` count the
    `<audio_end>` targets and those that the model ranked first among the legal rows. `guide`, with
    gradient, is guided attention's over all targets (`sheen.lm.guidance`), where it was asked for.
    """

    loss: Tensor
    count: Tensor
    ends: Tensor
    ends_right: Tensor
    guide: Tensor | None = None


def token_losses(
    hidden: Tensor, targets: Targets, head: Tensor, layout: TokenLayout, softmax: Softmax
) -> tuple[list[Tensor], Tensor]:
    """Cross-entropy of every target, per level `[n]` float32 in nats; `<audio_end>` ranked first.

    `hidden` `[T, d]` are the states of a row; `head` `[V, d]` is the output embedding. The second
    value `[n]` says of each target of level 0 whether it is an `<audio_end>` that the model ranked
    first among the legal rows.
    """
    # Cut once: each cut of the whole table would make a gradient of its size.
    audio = head[layout.start_id : layout.start_id + layout.size].to(hidden.dtype)
    losses = []
    ends_right = torch.zeros(0, dtype=torch.bool, device=hidden.device)
    for level, (positions, rows) in enumerate(zip(targets.positions, targets.rows, strict=True)):
        legal = layout.legal(layout.slots.index((level, 0)))
        states = hidden[positions]
        legal_rows = audio[legal.start - layout.start_id : legal.stop - layout.start_id]
        if softmax == "full":
            losses.append(_full_losses(states, legal.start + rows, head))
            if level == 0:
                with torch.no_grad():
                    logits = F.linear(states, legal_rows)
        else:
            logits = F.linear(states, legal_rows).float()
            losses.append(F.cross_entropy(logits, rows, reduction="none"))
        if level == 0:
            ends_right = (logits.argmax(-1) == 0) & (rows == 0)
    return losses, ends_right


def _full_losses(states: Tensor, ids: Tensor, head: Tensor) -> Tensor:
    """Chunk by chunk and recomputed in the backward pass: the logits are never held at once."""

    def losses(states: Tensor, ids: Tensor) -> Tensor:
        logits = F.linear(states, head.to(states.dtype)).float()
        return F.cross_entropy(logits, ids, reduction="none")

    chunks = [
        checkpoint(losses, *chunk, use_reentrant=False)
        for chunk in zip(states.split(CHUNK), ids.split(CHUNK), strict=True)
    ]
    return torch.cat(chunks)


def speech_loss(
    hidden: Tensor,
    targets: Targets,
    head: Tensor,
    layout: TokenLayout,
    softmax: Softmax = "masked",
) -> LossSums:
    """The sums of `token_losses`."""
    losses, ends_right = token_losses(hidden, targets, head, layout, softmax)
    counts = to_device(torch.tensor(targets.counts), hidden.device)
    ends = (targets.rows[0] == 0).sum()
    return LossSums(torch.stack([loss.sum() for loss in losses]), counts, ends, ends_right.sum())


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
