"""Attention of one pass over slots: every row sees its own slot up to itself, and nothing else.

Owns the attention function that transformers calls in generation. On a CPU it is one call per slot
over that slot's own length: no shape depends on what else is in the pass, so neither does a
rounding. On a GPU it is one call over all slots, cut at a common length.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from sheen.core.attention import BEYOND
from sheen.core.slots import SlotCache

SLOTTED = "sheen_slots"
"""The name under which transformers knows `slot_attention`."""


@dataclass(frozen=True)
class Span:
    """`count` rows of a pass that stand at a slot's positions from `start` on."""

    slot: int
    start: int
    count: int


@dataclass
class Rows:
    """The rows `[T]` of a pass. `index` says where the cache keeps them.

    Either `spans` name them in order (rows after the last span belong to nobody), or, with
    `length`, row s is slot s at `positions[s]`, which is below `length`.
    """

    cache: SlotCache
    index: Tensor
    spans: list[Span] = field(default_factory=list)
    positions: Tensor | None = None
    length: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """`[slots, 1, 1, length]`: what each slot's row sees. The same for all layers."""
        if window not in self._masks:
            assert self.positions is not None
            at = torch.arange(self.length, device=self.positions.device)
            own = self.positions[:, None]
            seen = at <= own
            if window is not None:
                seen &= at > own - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]


def slot_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    rows: Rows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; `query` `[1, heads, T, d]`, the result `[1, T, heads, d]`.

    `key` and `value` may have fewer heads, and are kept in the cache first. Raises ValueError for
    what is not computed here.
    """
    if unknown := [name for name in BEYOND if others.get(name) is not None]:
        raise ValueError(f"the base's attention has {unknown[0]!r}; the engine's knows none")
    layer = module.layer_idx
    assert isinstance(layer, int)
    rows.cache.write(layer, rows.index, key, value)
    attend = _all_slots if rows.length else _slot_by_slot
    return attend(query.to(rows.cache.shape.dtype), rows, layer, scaling, sliding_window), None


def _all_slots(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    cache, length = rows.cache, rows.length
    _, heads, count, width = query.shape
    # A group of heads that share keys becomes a query of several rows: nothing is repeated.
    grouped = query[0].transpose(0, 1).reshape(count, cache.shape.kv_heads, -1, width)
    out = F.scaled_dot_product_attention(
        grouped,
        cache.keys[layer][:, :, :length],
        cache.values[layer][:, :, :length],
        rows.mask(window),
        scale=scaling,
    )
    return out.reshape(1, count, heads, width)


def _slot_by_slot(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    cache = rows.cache
    keys, values = cache.slot_keys[layer], cache.slot_values[layer]
    _, heads, total, width = query.shape
    shape = (cache.shape.kv_heads, heads // cache.shape.kv_heads, width)
    # Every call counts: there is a round of them for each slot and layer.
    by_row = query[0].transpose(0, 1).reshape(total, *shape)
    outs, row = [], 0
    for span in rows.spans:
        end = span.start + span.count
        if span.count == 1:
            first = 0 if window is None else max(0, end - window)
            out = F.scaled_dot_product_attention(
                by_row.narrow(0, row, 1),
                keys[span.slot].narrow(2, first, end - first),
                values[span.slot].narrow(2, first, end - first),
                scale=scaling,
            )
            outs.append(out)
        else:
            mask = None
            if span.start or (window is not None and span.count > window):
                mask = _causal(span, window, query.device)
            out = F.scaled_dot_product_attention(
                query[:, :, row : row + span.count],
                keys[span.slot].narrow(2, 0, end),
                values[span.slot].narrow(2, 0, end),
                mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=True,
            )
            outs.append(out[0].transpose(0, 1).reshape(span.count, *shape))
        row += span.count
    if row < total:
        outs.append(query.new_zeros(total - row, *shape))
    return torch.cat(outs).reshape(1, total, heads, width)


def _causal(span: Span, window: int | None, device: torch.device) -> Tensor:
    """`[count, start + count]`: what the rows of a later piece of a prompt see."""
    at = torch.arange(span.start + span.count, device=device)
    own = at[span.start :, None]
    seen = at <= own
    return seen if window is None else seen & (at > own - window)


AttentionInterface.register(SLOTTED, slot_attention)
