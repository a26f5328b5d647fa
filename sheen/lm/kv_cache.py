"""The KV cache of generation, and attention over it.

Owns preallocated keys and values, a fixed stretch of them per slot, and the attention function that
transformers calls in generation: each row of a step attends to its own slot, up to itself. On a CPU
that is one call per slot over the slot's own length, so that no shape, and hence no rounding,
depends on what else is in the step; on a GPU it is one call over all slots, cut at a common length.
Refuses slots that do not fit the device's memory, and attention arguments that it does not compute.
Knows nothing about requests: which slot is whose is `sheen.engine.scheduler`'s.
"""

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
            free, _ = torch.cuda.mem_get_info(device)
            if needed > free:
                raise ValueError(
                    f"{slots} slots of {max_seq_len} tokens need {needed / 1e9:.2f} GB, "
                    f"{needed / slots / 1e6:.1f} MB each; {free / 1e9:.2f} GB are free"
                )
        size = (slots, shape.kv_heads, self.capacity, shape.head_dim)

        def tables() -> list[Tensor]:
            # Zeros, because what nothing was written to is masked by a product with zero.
            return [
                torch.zeros(size, dtype=shape.dtype, device=device) for _ in range(shape.layers)
            ]

        self.keys, self.values = tables(), tables()
        # One view per layer and slot, `[1, kv_heads, capacity, head_dim]`: made once, cut often.
        self.slot_keys = [list(table.split(1)) for table in self.keys]
        self.slot_values = [list(table.split(1)) for table in self.values]
        self._flat = [
            (keys.view(-1, shape.head_dim), values.view(-1, shape.head_dim))
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        self._heads = torch.arange(shape.kv_heads, device=device)

    def index(self, slots: Tensor, positions: Tensor) -> Tensor:
        """Where rows at `slots` `[T]` and `positions` `[T]` are kept: `[T * kv_heads]`."""
        heads = slots[:, None] * self.shape.kv_heads + self._heads
        return (heads * self.capacity + positions[:, None]).reshape(-1)

    def write(self, layer: int, index: Tensor, key: Tensor, value: Tensor) -> None:
        """Keep `key` and `value` `[1, kv_heads, T, head_dim]` at an `index`."""
        for table, rows in zip(self._flat[layer], (key, value), strict=True):
            if rows.shape[1] != self.shape.kv_heads or rows.shape[3] != self.shape.head_dim:
                raise ValueError(
                    f"layer {layer} has keys of shape {tuple(rows.shape)}; the base's config says "
                    f"{self.shape.kv_heads} heads of {self.shape.head_dim}"
                )
            flat = rows[0].transpose(0, 1).reshape(-1, self.shape.head_dim)
            table.index_copy_(0, index, flat.to(table.dtype))


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
    """The rows `[T]` of a step. `index` says where the cache keeps them.

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
    """`[count, start + count]`: what the rows of a later chunk of a prompt see."""
    at = torch.arange(span.start + span.count, device=device)
    own = at[span.start :, None]
    seen = at <= own
    return seen if window is None else seen & (at > own - window)


AttentionInterface.register(SLOTTED, slot_attention)
