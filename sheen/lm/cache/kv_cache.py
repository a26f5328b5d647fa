"""The KV cache of generation: one arena of keys and values, cut into pages of 64 tokens.

Owns the arena's memory and its arithmetic, how many sequences hold each page, and a table per slot:
which pages hold its positions, in order. A request has pages for its own length, not for the
longest one's. Pages may be held by several slots, which then read the same beginning; such a page
is never written. Refuses an arena that does not fit the device's memory, to give more pages than
are free, and to give back a free one. Knows nothing about requests: which slot is whose, and who
has to wait for pages, is `sheen.engine.scheduler`'s; attention is `sheen.lm.attention.slots`'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

PAGE = 64
"""Tokens of a page."""
SHARE = 0.9
"""The largest share of a GPU's free memory that the cache takes by default, as vLLM's: estimates of
what else is needed may be wrong."""
FREE, HELD = 1, 0


class PagePool:
    """Which of `count` pages, numbered from 0, are free, and how many sequences hold the others.

    A sequence gets the first run of neighbors that is long enough, and single pages where there is
    none. Not safe to share between threads without a lock, but for reading `free`.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.free = count
        """The number of free pages."""
        self._holders = [0] * count
        self._map = bytearray([FREE]) * count

    def take(self, count: int) -> list[int]:
        """So many free pages, in order of their numbers, held once each. ValueError when fewer are
        free."""
        if not 1 <= count <= self.free:
            raise ValueError(f"{count} pages of the KV cache are needed; {self.free} are free")
        first = self._map.find(bytes([FREE]) * count)
        pages = list(range(first, first + count)) if first >= 0 else self._singles(count)
        for page in pages:
            self._map[page] = HELD
            self._holders[page] = 1
        self.free -= count
        return pages

    def _singles(self, count: int) -> list[int]:
        pages, at = list[int](), -1
        for _ in range(count):
            at = self._map.find(FREE, at + 1)
            pages.append(at)
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more sequence holds these pages."""
        for page in pages:
            assert self._holders[page], f"page {page} is free"
            self._holders[page] += 1

    def give_back(self, pages: Sequence[int]) -> None:
        """One sequence less holds these pages; those without any are free."""
        for page in pages:
            assert self._holders[page], f"page {page} is free already"
            self._holders[page] -= 1
            if not self._holders[page]:
                self._map[page] = FREE
                self.free += 1

    def holders(self, page: int) -> int:
        return self._holders[page]


@dataclass(frozen=True)
class CacheShape:
    """The shape of the keys and values that a base keeps for each position."""

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

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one position."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def page_bytes(self) -> int:
        return PAGE * self.token_bytes

    def __str__(self) -> str:
        return (
            f"2 x {self.layers} layers x {self.kv_heads} heads x {self.head_dim} x "
            f"{self.dtype.itemsize} bytes"
        )


def pages_of(tokens: int) -> int:
    """The number of pages of a sequence of so many tokens."""
    return -(-tokens // PAGE)


def arena_bytes(shape: CacheShape, pages: int) -> int:
    """Memory of an arena: its pages, and the spare one for unused rows of a step."""
    return (pages + 1) * shape.page_bytes


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be allocated on a CUDA device: free memory, and memory that torch holds for
    this process and does not use, as after training steps. None for another device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def plan_pages(
    shape: CacheShape,
    slots: int,
    max_seq_len: int,
    free: int | None,
    cache_bytes: int | None = None,
    reserve: int = 0,
) -> int:
    """Pages of an arena for `slots` sequences of up to `max_seq_len` tokens.

    As many as fit `cache_bytes`; by default enough for the longest sequence at every slot, and on a
    GPU, where `free` bytes are free (else None), no more than SHARE of them. There `reserve` bytes
    stay free either way, for what else is computed. Raises ValueError for memory that the device
    has not, and where it is too little for a page, or by default for one sequence.
    """
    longest = pages_of(max_seq_len)
    if cache_bytes is not None:
        if free is not None and cache_bytes > free - reserve:
            raise ValueError(
                f"a KV cache of {cache_bytes / 1e9:.2f} GB was asked for; {free / 1e9:.2f} GB of "
                f"the GPU's memory are free, and {reserve / 1e9:.2f} GB of them are needed for the "
                "rest"
            )
        pages = cache_bytes // shape.page_bytes - 1
        if pages < 1:
            raise ValueError(
                f"a KV cache of {cache_bytes / 1e6:.3f} MB was asked for; the least is two pages, "
                f"{arena_bytes(shape, 1) / 1e6:.3f} MB"
            )
        return pages
    pages = slots * longest
    if free is None:
        return pages
    kept = max(reserve, free - int(SHARE * free))
    pages = min(pages, (free - kept) // shape.page_bytes - 1)
    if pages < longest:
        raise ValueError(
            f"a sequence of {max_seq_len} tokens needs a KV cache of "
            f"{arena_bytes(shape, longest) / 1e9:.2f} GB; {free / 1e9:.2f} GB of the GPU's memory "
            f"are free, and {kept / 1e9:.2f} GB are kept for the rest. Free some, or ask for "
            "shorter sequences"
        )
    return pages


class _Table:
    """The rows of the arena that hold the positions of one slot."""

    def __init__(self, pages: Sequence[int], device: torch.device) -> None:
        self.pages = pages
        run = all(after == page + 1 for page, after in pairwise(pages))
        self.first = pages[0] * PAGE if run else None
        """Row of the first position if the others follow it in the arena, else None."""
        self.index = torch.tensor(pages, device=device)

    def rows(self, start: int, count: int) -> Sequence[int]:
        if self.first is not None:
            return range(self.first + start, self.first + start + count)
        places = (divmod(position, PAGE) for position in range(start, start + count))
        return [self.pages[page] * PAGE + at for page, at in places]


class Gathered:
    """Like a tuple of the keys and values of all layers; access copies one from its pages."""

    def __init__(self, pages: Tensor, index: Tensor, length: int) -> None:
        self._pages, self._index, self._length = pages, index, length

    def __getitem__(self, number: int) -> Tensor:
        copy = self._pages[number].index_select(1, self._index)
        heads, count, width = copy.shape
        whole = copy.view(1, heads, count * PAGE, width // PAGE)
        return whole.narrow(2, 0, self._length)


Cut = tuple[Tensor, ...] | Gathered
"""Keys and values `[1, kv_heads, length, head_dim]` of layer l, at 2 l and 2 l + 1."""


class PagedCache:
    """`pages` pages, and tables of `slots` slots whose sequences have up to `max_seq_len` tokens.

    The arena is `[2 * layers, 1, kv_heads, rows, head_dim]`, PAGE rows to a page. Positions in
    consecutive pages are read in place, as a view of all layers.
    """

    def __init__(
        self, shape: CacheShape, slots: int, max_seq_len: int, pages: int, device: torch.device
    ) -> None:
        self.shape = shape
        self.slots = slots
        self.capacity = pages_of(max_seq_len) * PAGE
        """Positions of the longest sequence, in whole pages."""
        self.pool = PagePool(pages)
        self.spare_row = (pages + 1) * PAGE - 1
        """The row that unused rows of a step are written to. It is the last of a page of its own;
        idle slots read that page's first row, which is never written."""
        rows = (pages + 1) * PAGE
        size = (2 * shape.layers, 1, shape.kv_heads, rows, shape.head_dim)
        # Zeros, because what nothing was written to is masked by a product with zero.
        self._arena = torch.zeros(size, dtype=shape.dtype, device=device)
        self._flat = list(self._arena.view(shape.layers, -1, shape.head_dim))
        self.heads = torch.arange(2 * shape.kv_heads, device=device) * rows
        """Offsets to add to a row's number for its index into a layer, by head, the keys first."""
        self.pages = self._arena.view(
            2 * shape.layers, shape.kv_heads, pages + 1, PAGE * shape.head_dim
        )
        """The arena by page: `[2 * layers, kv_heads, pages, PAGE * head_dim]`."""
        self._tables: dict[int, _Table] = {}
        self.tables = torch.full((slots, self.capacity // PAGE), pages, device=device)
        """`[slots, pages]`: those of each slot in order, and then the spare one."""

    def open(
        self,
        slot: int,
        tokens: int,
        prefix: Sequence[int] = (),
        make_room: Callable[[int], object] = lambda pages: None,
    ) -> None:
        """Give a slot pages for so many tokens. Its first pages are those of `prefix`, which others
        have written and hold too. `make_room` may give back some that are needed. ValueError, with
        nothing taken, when there are too few."""
        assert slot not in self._tables, f"slot {slot} has pages already"
        count = pages_of(tokens)
        assert len(prefix) < count <= self.tables.shape[1], "of the wrong length"
        self.pool.share(prefix)  # first, lest they make the room
        try:
            make_room(count - len(prefix))
            own = self.pool.take(count - len(prefix))
        except ValueError:
            self.pool.give_back(prefix)
            raise
        table = self._tables[slot] = _Table([*prefix, *own], self._arena.device)
        self.tables[slot, :count] = table.index

    def close(self, slot: int) -> None:
        """Give back what a slot holds, if it holds anything."""
        if (table := self._tables.pop(slot, None)) is not None:
            self.pool.give_back(table.pages)
            self.tables[slot].fill_(self.pool.count)

    def pages_at(self, slot: int) -> Sequence[int]:
        """The pages of a slot, in order."""
        return self._tables[slot].pages

    def rows(self, slot: int, start: int, count: int) -> Sequence[int]:
        """The arena's rows for positions of a slot that are about to be written."""
        table = self._tables[slot]
        for page in range(start // PAGE, pages_of(start + count)):
            # A shared page would have to be copied before a write, which nothing needs.
            assert self.pool.holders(table.pages[page]) == 1, f"page {page} of {slot} is shared"
        return table.rows(start, count)

    def write(self, layer: int, index: Tensor, heads: Tensor) -> None:
        """Keep keys and values `[T, 2 * kv_heads, head_dim]`, the keys first, at an `index`
        `[T, 2 * kv_heads]`, which is rows plus `heads`."""
        _, count, width = heads.shape
        if count != 2 * self.shape.kv_heads or width != self.shape.head_dim:
            raise ValueError(
                f"layer {layer} has keys and values of shape {tuple(heads.shape)}; the base's "
                f"config says {self.shape.kv_heads} heads of {self.shape.head_dim}"
            )
        self._flat[layer].index_copy_(0, index.view(-1), heads.reshape(-1, width))

    def cut(self, slot: int, length: int) -> Cut:
        """The first positions of a slot: views made by one call for all layers or, if its pages are
        not consecutive, copies, made for each layer when it is read."""
        table = self._tables[slot]
        if table.first is None:
            count = pages_of(length)
            return Gathered(self.pages, table.index[:count], length)
        return self._arena.narrow(3, table.first, length).unbind()
