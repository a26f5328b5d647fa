"""Slots: the fixed places at which requests run, and the memory of each.

Owns the preallocated KV cache and the generations of slots. Whoever keeps a slot's number for later
keeps its generation too: a slot that was given to another request in between has another one. Knows
nothing about what is computed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

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

    def slot_bytes(self, positions: int) -> int:
        """Memory of one slot of this many positions."""
        values = self.layers * self.kv_heads * self.head_dim * room(positions)
        return 2 * values * self.dtype.itemsize


def room(positions: int) -> int:
    """Positions that a slot has memory for: one more than asked for, see `SlotCache.spare`."""
    return -(-(positions + 1) // BLOCK) * BLOCK


class SlotCache:
    """Keys and values of all slots, per layer `[slots, kv_heads, room, head_dim]`.

    `spare` is the last position of every slot. No request gets so far; rows of a pass that belong
    to no request are written there. Raises ValueError when the device has not the memory.
    """

    def __init__(self, shape: CacheShape, slots: int, positions: int, device: torch.device) -> None:
        self.shape = shape
        self.slots = slots
        self.room = room(positions)
        self.spare = self.room - 1
        needed = slots * shape.slot_bytes(positions)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if needed > free:
                raise ValueError(
                    f"{slots} slots of {positions} positions need {needed / 1e9:.2f} GB, "
                    f"{shape.slot_bytes(positions) / 1e6:.1f} MB each; {free / 1e9:.2f} GB are free"
                )
        size = (slots, shape.kv_heads, self.room, shape.head_dim)

        def tables() -> list[Tensor]:
            # Zeros, because what nothing was written to is masked by a product with zero.
            return [
                torch.zeros(size, dtype=shape.dtype, device=device) for _ in range(shape.layers)
            ]

        self.keys, self.values = tables(), tables()
        # One view per layer and slot, `[1, kv_heads, room, head_dim]`: made once, cut often.
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
        return (heads * self.room + positions[:, None]).reshape(-1)

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


class Slots:
    """Which slots are free. Not safe to share between threads without a lock."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))  # the lowest first
        self._generations = [0] * count
        self.count = count

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> tuple[int, int]:
        """A free slot and its generation."""
        slot = self._free.pop()
        return slot, self._generations[slot]

    def give_back(self, slot: int) -> None:
        """Free a slot; nothing that its generation so far produces is anybody's any more."""
        assert slot not in self._free, f"slot {slot} is free already"
        self._generations[slot] += 1
        self._free.append(slot)
        self._free.sort(reverse=True)
