"""The KV cache of generation, and attention over it.

Owns preallocated keys and values, a fixed stretch of them per slot, and the attention function that
transformers calls in generation: each row of a step attends to its own slot, up to itself. On a CPU
that is one call per slot over the slot's own length, so that no shape, and hence no rounding,
depends on what else is in the step; on a GPU it is one call over all slots, cut at a common length.
Refuses slots that do not fit the device's memory, and attention arguments that it does not compute.
Knows nothing about requests: which slot is whose is `sheen.engine.scheduler`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from sheen.lm.attention import BEYOND

BLOCK = 64
"""Positions of a slot are a multiple of this, so that every slot's memory is aligned alike."""


@dataclass(frozen=True)
class CacheShape:
    """What a base keeps of every position."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @staticmethod
    def of(lm: PreTrainedModel) -> "CacheShape":
        config = lm.config.get_text_config()
        heads = int(config.num_attention_heads)
        return CacheShape(
            layers=int(config.num_hidden_layers),
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            dtype=lm.dtype,
        )

    def slot_bytes(self, max_seq_len: int) -> int:
        """Memory of one slot that holds sequences of up to `max_seq_len` tokens."""
        values = self.layers * self.kv_heads * self.head_dim * capacity(max_seq_len)
        return 2 * values * self.dtype.itemsize


def capacity(max_seq_len: int) -> int:
    """Positions of a slot's memory: at least one more than its longest sequence has, see
    `SlotCache.spare`."""
    return -(-(max_seq_len + 1) // BLOCK) * BLOCK


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated on a CUDA device: what no process has, and what torch keeps of
    this one without a use for it, as after training steps."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class SlotCache:
    """Keys and values of all slots, per layer `[slots, kv_heads, capacity, head_dim]`.

    `spare` is the last position of every slot. No request gets so far; rows of a step that belong
    to no request are written there. Raises ValueError when the device has not the memory.
    """

    def __init__(
        self, shape: CacheShape, slots: int, max_seq_len: int, device: torch.device
    ) -> None:
        self.shape = shape
        self.slots = slots
        self.capacity = capacity(max_seq_len)
        self.spare = self.capacity - 1
        needed = slots * shape.slot_bytes(max_seq_len)
        if device.type == "cuda":
            free = free_memory(device)
            if needed > free:
                raise ValueError(
                    f"{slots} slots of {max_seq_len} tokens need {needed / 1e9:.2f} GB, "
                    f"{needed / slots / 1e6:.1f} MB each; {free / 1e9:.2f} GB are free"
                )
        size = (shape.layers, 2, slots, shape.kv_heads, self.capacity, shape.head_dim)
        # Zeros, because what nothing was written to is masked by a product with zero.
        whole = torch.zeros(size, dtype=shape.dtype, device=device)
        self.keys, self.values = list(whole[:, 0]), list(whole[:, 1])
        self._flat = list(whole.view(shape.layers, -1, shape.head_dim))
        # `[2 * layers, 1, kv_heads, capacity, head_dim]` of each slot.
        self._slots = [part.flatten(0, 1) for part in whole.split(1, dim=2)]
        heads = torch.arange(shape.kv_heads, device=device)
        self._heads = torch.cat([heads, heads + slots * shape.kv_heads])

    def first(self, slots: Tensor) -> Tensor:
        """Where position 0 of slots `[T]` is kept, by head: `[T, 2 * kv_heads]`. Position n is n
        further on."""
        return (slots[:, None] * self.shape.kv_heads + self._heads) * self.capacity

    def write(self, layer: int, index: Tensor, heads: Tensor) -> None:
        """Keep keys and values `[T, 2 * kv_heads, head_dim]`, the keys first, at an `index`."""
        _, count, width = heads.shape
        if count != 2 * self.shape.kv_heads or width != self.shape.head_dim:
            raise ValueError(
                f"layer {layer} has keys and values of shape {tuple(heads.shape)}; the base's "
                f"config says {self.shape.kv_heads} heads of {self.shape.head_dim}"
            )
        self._flat[layer].index_copy_(0, index.view(-1), heads.reshape(-1, width))

    def cut(self, slot: int, length: int) -> Sequence[Tensor]:
        """The first positions of a slot: keys and values of layer l, `[1, kv_heads, length,
        head_dim]`, at 2 l and 2 l + 1. One call for all layers."""
        cut: Sequence[Tensor] = self._slots[slot].narrow(3, 0, length).unbind()
        return cut


SLOTTED = "sheen_slots"
"""The name under which transformers knows `slot_attention`."""


@dataclass(frozen=True)
class Span:
    """`count` rows of a step that stand at a slot's positions from `start` on."""

    slot: int
    start: int
    count: int


@dataclass
class Rows:
    """The rows `[T]` of a step. `index` `[T, 2 * kv_heads]` says where the cache keeps them.

    Either `spans` name them in order (rows after the last span belong to nobody), or, with
    `length`, row s is slot s at `positions[s]`, which is below `length`.
    """

    cache: SlotCache
    index: Tensor
    spans: Sequence[Span] = field(default_factory=list)
    positions: Tensor | None = None
    length: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)
    _cuts: list[Sequence[Tensor]] = field(default_factory=list)

    def cuts(self) -> list[Sequence[Tensor]]:
        """What the spans see of the cache, one by one: see `SlotCache.cut`."""
        if not self._cuts:
            ends = ((span.slot, span.start + span.count) for span in self.spans)
            self._cuts = [self.cache.cut(slot, end) for slot, end in ends]
        return self._cuts

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
    heads = torch.cat((key.transpose(1, 2), value.transpose(1, 2)), 2)[0]
    heads = heads.to(rows.cache.shape.dtype)
    own = query[0].transpose(0, 1).to(rows.cache.shape.dtype)
    rows.cache.write(layer, rows.index, heads)
    return attend(own, rows, layer, scaling, sliding_window)[None], None


def attend(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    """Attention `[T, heads, d]` of a step's rows `[T, heads, d]` to what the cache holds."""
    way = _all_slots if rows.length else _slot_by_slot
    return way(query, rows, layer, scaling, window)


def _all_slots(
    query: Tensor, rows: Rows, layer: int, scaling: float | None, window: int | None
) -> Tensor:
    cache, length = rows.cache, rows.length
    count, _, width = query.shape
    # A group of heads that share keys becomes a query of several rows: nothing is repeated.
    grouped = query.reshape(count, cache.shape.kv_heads, -1, width)
    out = F.scaled_dot_product_attention(
        grouped,
        cache.keys[layer][:, :, :length],
        cache.values[layer][:, :, :length],
        rows.mask(window),
        scale=scaling,
    )
    return out.reshape(query.shape)


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


def _causal(span: Span, window: int | None, device: torch.device) -> Tensor:
    """`[count, start + count]`: what the rows of a later chunk of a prompt see."""
    at = torch.arange(span.start + span.count, device=device)
    own = at[span.start :, None]
    seen = at <= own
    return seen if window is None else seen & (at > own - window)


AttentionInterface.register(SLOTTED, slot_attention)
