"""The loss: per codebook level, over the rows that are legal at each slot.

Owns the objective and its counts. The model is scored against the distribution that a decoder
restricted to legal rows samples from: 4,097 rows where a frame may begin (level 0 and
`<audio_end>`), 4,096 elsewhere, instead of the 164k of the whole vocabulary. Sums are returned
with target counts; dividing happens once, by the count over all ranks and accumulation steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sheen.core.tokens import TokenLayout

IGNORE_INDEX = -100
"""Label of a position that carries no loss (torch's own convention)."""


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, per codebook level; `<audio_end>` counts to level 0.

    `loss` `[levels]` in nats, with gradient; `count` `[levels]`; `ends` and `ends_right` count the
    `<audio_end>` targets and those that the model ranked first.
    """

    loss: Tensor
    count: Tensor
    ends: Tensor
    ends_right: Tensor


def audio_targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where the loss looks: `labels` `[B, T]`, aligned with the inputs (label t names input t).

    Returns a mask `[B, T - 1]` over the positions that predict a target, and the targets `[N]`.
    """
    following = labels[:, 1:]
    mask = following != IGNORE_INDEX
    return mask, following[mask]


def speech_loss(hidden: Tensor, targets: Tensor, head: Tensor, layout: TokenLayout) -> LossSums:
    """Cross-entropy of each target among the rows legal at its slot.

    `hidden` `[N, d]` are the states that predict `targets` `[N]` (token ids); `head` `[V, d]` is
    the output embedding. Every target must be an audio token of the layout.
    """
    losses, counts = [], []
    ends = targets == layout.end_id
    ends_right = torch.zeros((), device=hidden.device)
    for level in range(layout.levels):
        base = layout.level_base(level)
        chosen = (targets >= base) & (targets < base + layout.codebook_size)
        if level == 0:
            # Slot 0 is where a frame may begin, so its rows start one earlier, at <audio_end>.
            chosen, base = chosen | ends, layout.end_id
        rows = head[base : layout.level_base(level) + layout.codebook_size]
        logits = F.linear(hidden[chosen], rows.to(hidden.dtype)).float()
        wanted = targets[chosen] - base
        losses.append(F.cross_entropy(logits, wanted, reduction="sum"))
        counts.append(chosen.sum())
        if level == 0:
            ends_right = ((logits.argmax(-1) == 0) & (wanted == 0)).sum()
    return LossSums(torch.stack(losses), torch.stack(counts), ends.sum(), ends_right)
