"""The loss: cross-entropy per codebook level, under a masked or a full softmax.

Owns both and their counts. Masked, the default, normalizes over the rows that are legal at a slot,
the distribution that a masked decoder samples from: 4,097 rows where a frame may begin (level 0 and
`<audio_end>`), 4,096 elsewhere, instead of the 164k of the whole vocabulary. Full normalizes over
all rows, so that engines which decode without a mask can use the model. Sums are returned with
target counts, by level, whichever blocks of ids the layout has; dividing happens once, by the count
over all ranks and accumulation steps.

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
    """The targets of a row of `T` tokens, one pair of tensors `[n]` per block of the
    layout, whose `levels` are told too.

    `positions` are those of the predicting states; `rows` count from the first legal row of the
    block's slots, which in the first one is `<audio_end>`. `controls` are positions and ids of
    further targets, which a full softmax alone can learn; they count to level 0.
    """

    positions: list[Tensor]
    rows: list[Tensor]
    levels: tuple[int, ...]
    controls: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> "Targets":
        controls = self.controls
        if controls is not None:
            controls = to_device(controls[0], device), to_device(controls[1], device)
        return Targets(
            [to_device(tensor, device) for tensor in self.positions],
            [to_device(tensor, device) for tensor in self.rows],
            self.levels,
            controls,
        )

    @property
    def counts(self) -> list[int]:
        """Targets of each level."""
        counts = [0] * (1 + max(self.levels))
        for level, rows in zip(self.levels, self.rows, strict=True):
            counts[level] += len(rows)
        if self.controls is not None:
            counts[0] += len(self.controls[1])
        return counts

    @property
    def all_positions(self) -> Tensor:
        """The positions of all targets, `[n]`."""
        controls = () if self.controls is None else self.controls[:1]
        return torch.cat([*self.positions, *controls])

    def __len__(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, per codebook level; `<audio_end>` counts to level 0.

    `loss` `[levels]` in nats, with gradient; `count` `[levels]`; `ends` and `ends_right` count the
    `<audio_end>` targets and those that the model ranked first among the legal rows. `guide`, with
    gradient, is guided attention's over all targets (`sheen.lm.attention.guidance`), where it was
    asked for.
    """

    loss: Tensor
    count: Tensor
    ends: Tensor
    ends_right: Tensor
    guide: Tensor | None = None


def token_losses(
    hidden: Tensor, targets: Targets, head: Tensor, layout: TokenLayout, softmax: Softmax
) -> tuple[list[Tensor], Tensor]:
    """Cross-entropy of every target, per block `[n]` float32 in nats; `<audio_end>` ranked first.

    `hidden` `[T, d]` are the states of a row; `head` `[V, d]` is the output embedding. Controls,
    where a full softmax learns them, come behind the blocks. The second value `[n]` says of each
    target of the first block whether it is an `<audio_end>` that the model ranked first among the
    legal rows.
    """
    # Cut once: each cut of the whole table would make a gradient of its size.
    audio = head[layout.first_id : layout.first_id + layout.size].to(hidden.dtype)
    losses = []
    ends_right = torch.zeros(0, dtype=torch.bool, device=hidden.device)
    for block, positions, rows in zip(layout.blocks, targets.positions, targets.rows, strict=True):
        states = hidden[positions]
        first = block.base - layout.first_id
        legal_rows = audio[first : first + layout.codebook_size]
        ids = block.base + rows
        if block.ends:
            end = layout.end_id - layout.first_id
            if end + 1 == first:
                legal_rows = audio[end : first + layout.codebook_size]
            else:
                legal_rows = torch.cat([audio[end : end + 1], legal_rows])
            ids = torch.where(rows == 0, layout.end_id, ids - 1)
        if softmax == "full":
            losses.append(_full_losses(states, ids, head))
            if block.ends:
                with torch.no_grad():
                    logits = F.linear(states, legal_rows)
        else:
            logits = F.linear(states, legal_rows).float()
            losses.append(F.cross_entropy(logits, rows, reduction="none"))
        if block.ends:
            ends_right = (logits.argmax(-1) == 0) & (rows == 0)
    if targets.controls is not None:
        assert softmax == "full", "a masked softmax has no rows for controls"
        positions, ids = targets.controls
        losses.append(_full_losses(hidden[positions], ids, head))
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
    sums = [loss.sum() for loss in losses]
    levels = [*targets.levels, *[0] * (len(sums) - len(targets.levels))]
    of_levels = [
        torch.stack([part for part, of in zip(sums, levels, strict=True) if of == level]).sum()
        for level in range(layout.levels)
    ]
    return LossSums(torch.stack(of_levels), counts, ends, ends_right.sum())


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
