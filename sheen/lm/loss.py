"""The loss: cross-entropy per codebook level, under a masked or a full softmax.

Owns both and their counts. Masked, the default, normalises over the rows that are legal at a slot,
the distribution that a masked decoder samples from: 4,097 rows where a frame may begin (level 0 and
`<audio_end>`), 4,096 elsewhere, instead of the 164k of the whole vocabulary. Full normalises over
all rows, so that engines which decode without a mask can use the model. Sums are returned with
target counts; dividing happens once, by the count over all ranks and accumulation steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sheen.codec.layout import Softmax, TokenLayout

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
            [tensor.to(device, non_blocking=True) for tensor in self.positions],
            [tensor.to(device, non_blocking=True) for tensor in self.rows],
        )

    def __len__(self) -> int:
        return sum(map(len, self.rows))


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, per codebook level; `<audio_end>` counts to level 0.

    `loss` `[levels]` in nats, with gradient; `count` `[levels]`; `ends` and `ends_right` count the
    `<audio_end>` targets and those that the model ranked first among the legal rows.
    """

    loss: Tensor
    count: Tensor
    ends: Tensor
    ends_right: Tensor


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
    counts = torch.tensor([len(rows) for rows in targets.rows], device=hidden.device)
    ends = (targets.rows[0] == 0).sum()
    return LossSums(torch.stack([loss.sum() for loss in losses]), counts, ends, ends_right.sum())
