"""Attention over the KV cache: what transformers calls in generation.

Owns the attention function: each row of a step attends to its own slot, up to itself. On a CPU that
is one call per slot over the slot's own length, so that no shape, and hence no rounding, depends on
what else is in the step; on a GPU it is one call over all slots, or as many as a copy of their
pages has room for, cut at a common length, and for chunks of prompts a call each in one of few
shapes. Refuses attention arguments that it does not compute.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from sheen.lm.attention.packed import BEYOND
from sheen.lm.cache.kv_cache import PAGE, Cut, PagedCache

SLOTTED = "sheen_slots"
"""The name under which transformers knows `slot_attention`."""
GATHERED_BYTES = 1 << 28
"""Largest copy of pages, in bytes, for slots that are attended to in one call."""


@dataclass(frozen=True)
class SlotSpan:
    """`count` rows of a step, at a slot's positions from `start` on.

    With a `length`, of whole pages, attention is to that many positions of the slot, and the span
    is `rows` rows of the step; those after `count` are unused.
    """

    slot: int
    start: int
    count: int
    rows: int = 0
    length: int = 0

    @property
    def spare(self) -> int:
        """Unused rows behind its own."""
        return self.rows - self.count if self.length else 0


@dataclass
class Rows:
    """The rows `[T]` of a step. `index` `[T, 2 * kv_heads]` says where the cache keeps them.

    Either `spans` name them in order (rows after the last span are unused), all with a length or
    none, or, with `length`, row s is slot s at `positions[s]`, which is below `length`, and
    `tables` `[slots, pages]` are the pages of that many positions.
    """

    cache: PagedCache
    index: Tensor
    spans: Sequence[SlotSpan] = field(default_factory=list)
    positions: Tensor | None = None
    tables: Tensor | None = None
    length: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _span_masks: dict[tuple[SlotSpan, int | None], Tensor] = field(default_factory=dict)
    _cuts: list[Cut] = field(default_factory=list)

    def cuts(self) -> list[Cut]:
        """The part of the cache that each span attends to, see `PagedCache.cut`."""
        if not self._cuts:
            ends = ((span.slot, span.start + span.count) for span in self.spans)
            self._cuts = [self.cache.cut(slot, end) for slot, end in ends]
        return self._cuts

    def mask(self, window: int | None) -> Tensor:
        """`[slots, 1, 1, length]`: the positions that each slot's row attends to in every layer."""
        if window not in self._masks:
            assert self.positions is not None
            at = torch.arange(self.length, device=self.positions.device)
            own = self.positions[:, None]
            seen = at <= own
            if window is not None:
                seen &= at > own - window
            self._masks[window] = seen[:, None, None]
        return self._masks[window]

    def span_mask(self, span: SlotSpan, window: int | None, group: int) -> Tensor:
        """`[group * rows, length]`, what to add to the scores of a span's rows in every layer, once
        for each of `group` heads: 0 where a row attends, else minus infinity."""
        if (span, window) not in self._span_masks:
            at = torch.arange(span.length, device=self.index.device)
            own = torch.arange(span.start, span.start + span.rows, device=at.device)[:, None]
            seen = at <= own
            if window is not None:
                seen &= at > own - window
            mask = torch.zeros(seen.shape, dtype=self.cache.shape.dtype, device=at.device)
            mask.masked_fill_(~seen, float("-inf"))
            self._span_masks[span, window] = mask.repeat(group, 1)
        return self._span_masks[span, window]


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
    heads = torch.cat((key.transpose(1, 2), value.transpose(1, 2)), 2)[0]
    heads = heads.to(rows.cache.shape.dtype)
    own = query[0].transpose(0, 1).to(rows.cache.shape.dtype)
    rows.cache.write(layer, rows.index, heads)
    return attend(own, rows, layer, scaling, sliding_window)[None], None


def attend(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    """Attention `[T, heads, d]` of a step's rows `[T, heads, d]` to what the cache holds."""
    if rows.length:
        return _all_slots(query, rows, layer, scaling, window)
    way = _in_few_shapes if rows.spans and rows.spans[0].length else _slot_by_slot
    return way(query, rows, layer, scaling, window)


def _all_slots(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    cache, tables, length = rows.cache, rows.tables, rows.length
    assert tables is not None
    count, _, width = query.shape
    # A group of heads that share keys becomes a query of several rows: nothing is repeated.
    grouped = query.reshape(count, cache.shape.kv_heads, -1, width)
    pages = cache.pages[2 * layer : 2 * layer + 2].flatten(0, 1)
    each = len(pages) * length * width * pages.element_size()
    together = max(1, GATHERED_BYTES // each)
    parts = (part.split(together) for part in (grouped, tables, rows.mask(window)))
    outs = []
    for queries, table, mask in zip(*parts, strict=True):
        copy = pages.index_select(1, table.flatten())
        keys, values = copy.view(2, -1, len(queries), length, width).transpose(1, 2).unbind()
        outs.append(F.scaled_dot_product_attention(queries, keys, values, mask, scale=scaling))
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).reshape(query.shape)


def _slot_by_slot(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    total, heads, width = query.shape
    kv_heads = rows.cache.shape.kv_heads
    shape = (kv_heads, heads // kv_heads, width)
    # Every call counts: there is a round of them for each slot and layer.
    by_row = query.view(total, *shape)
    singles = by_row.split(1) if total == len(rows.spans) else ()
    outs, row = [], 0
    for span, cut in zip(rows.spans, rows.cuts(), strict=True):
        keys, values = cut[2 * layer], cut[2 * layer + 1]
        end = span.start + span.count
        if span.count == 1:
            if window is not None and window < end:
                keys, values = keys[:, :, -window:], values[:, :, -window:]
            out = F.scaled_dot_product_attention(
                singles[row] if singles else by_row.narrow(0, row, 1), keys, values, scale=scaling
            )
            outs.append(out)
        else:
            mask = None
            if span.start or (window is not None and span.count > window):
                mask = _causal(span, window, query.device)
            out = F.scaled_dot_product_attention(
                query[row : row + span.count].transpose(0, 1)[None],
                keys,
                values,
                mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=True,
            )
            outs.append(out[0].transpose(0, 1).reshape(span.count, *shape))
        row += span.count
    if row < total:
        outs.append(query.new_zeros(total - row, *shape))
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).reshape(query.shape)


def _in_few_shapes(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    """For each span one call, whose shape is that of its `rows` and `length` alone.

    Heads that share keys are rows of one query, as in `_all_slots`: with a mask, torch's fast
    kernels on a GPU take no query with more heads than there are keys.
    """
    cache = rows.cache
    total, heads, width = query.shape
    shape = (cache.shape.kv_heads, heads // cache.shape.kv_heads, width)
    pages = cache.pages[2 * layer : 2 * layer + 2].flatten(0, 1)
    outs, row = [], 0
    for span in rows.spans:
        own = query.narrow(0, row, span.rows).view(span.rows, *shape)
        grouped = own.permute(1, 2, 0, 3).flatten(1, 2)[None]
        copy = pages.index_select(1, cache.tables[span.slot, : span.length // PAGE])
        keys, values = copy.view(2, 1, -1, span.length, width).unbind()
        mask = rows.span_mask(span, window, shape[1])
        out = F.scaled_dot_product_attention(grouped, keys, values, mask, scale=scaling)
        outs.append(out.view(*shape[:2], span.rows, width).permute(2, 0, 1, 3))
        row += span.rows
    if row < total:
        outs.append(query.new_zeros(total - row, *shape))
    return torch.cat(outs).reshape(query.shape)


def _causal(span: SlotSpan, window: int | None, device: torch.device) -> Tensor:
    """`[count, start + count]`: what the rows of a later chunk of a prompt see."""
    at = torch.arange(span.start + span.count, device=device)
    own = at[span.start :, None]
    seen = at <= own
    return seen if window is None else seen & (at > own - window)


AttentionInterface.register(SLOTTED, slot_attention)
