"""The arena of pages: its arithmetic, what slots read of it, its holders, and a GPU's memory."""

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from sheen.lm.cache.kv_cache import (
    PAGE,
    CacheShape,
    Gathered,
    PagedCache,
    PagePool,
    arena_bytes,
    free_memory,
    pages_of,
    plan_pages,
)

GB = 10**9
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL = CacheShape(layers=2, kv_heads=3, head_dim=4, dtype=torch.float32)
PUBLISHED = CacheShape(layers=28, kv_heads=8, head_dim=128, dtype=torch.bfloat16)
"""Qwen3-0.6B."""


def gpu_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Training steps left most of its memory to torch, unused."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: free + 10 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 11 * GB)


def test_the_cache_takes_the_memory_that_was_stated_before() -> None:
    assert PUBLISHED.token_bytes == 28 * 2 * 8 * 128 * 2
    assert PUBLISHED.page_bytes == 64 * PUBLISHED.token_bytes
    assert str(PUBLISHED) == "2 x 28 layers x 8 heads x 128 x 2 bytes"
    assert [pages_of(tokens) for tokens in (1, 64, 65, 3696)] == [1, 1, 2, 58]
    cache = PagedCache(SMALL, 3, 200, 12, CPU)
    assert cache.pages.numel() * 4 == arena_bytes(SMALL, 12) == 13 * 64 * 2 * 2 * 3 * 4 * 4


def test_a_cpu_gets_pages_for_the_longest_at_every_slot_or_what_it_is_told() -> None:
    assert plan_pages(SMALL, 8, 200, None) == 8 * 4
    assert plan_pages(SMALL, 8, 200, None, 7 * SMALL.page_bytes + 1) == 6
    with pytest.raises(ValueError, match=r"0\.012 MB was asked for; the least .* 0\.025 MB"):
        plan_pages(SMALL, 8, 200, None, SMALL.page_bytes + 1)


def test_a_gpu_gets_no_more_than_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that torch keeps unused counts as free: evaluation samples are made after steps."""
    gpu_with(monkeypatch, 50 * GB)
    assert free_memory(CPU) is None
    free = free_memory(CUDA)
    assert free == 50 * GB
    assert plan_pages(PUBLISHED, 8, 3696, free) == 8 * 58
    pages = plan_pages(PUBLISHED, 256, 3696, free)
    assert 44.9 * GB < arena_bytes(PUBLISHED, pages) <= 45 * GB
    assert plan_pages(PUBLISHED, 256, 3696, free, 49 * GB) > pages
    with pytest.raises(ValueError, match=r"51\.00 GB was asked for; 50\.00 GB .* are free"):
        plan_pages(PUBLISHED, 256, 3696, free, 51 * GB)
    with pytest.raises(ValueError, match=r"3696 tokens needs .* 0\.43 GB; 0\.25 GB .* are free"):
        plan_pages(PUBLISHED, 8, 3696, GB // 4)


def test_a_gpu_keeps_back_what_else_is_computed() -> None:
    """Where it is more than the tenth that is kept anyway, or the memory was stated."""
    free = 10 * GB
    pages = plan_pages(PUBLISHED, 256, 3696, free, reserve=3 * GB)
    assert 6.9 * GB < arena_bytes(PUBLISHED, pages) <= 7 * GB
    assert plan_pages(PUBLISHED, 256, 3696, free, reserve=GB // 2) > pages
    assert plan_pages(PUBLISHED, 256, 3696, free, 7 * GB, reserve=3 * GB) == pages
    with pytest.raises(ValueError, match=r"8\.00 GB was asked for; 10\.00 GB .* 3\.00 GB of them"):
        plan_pages(PUBLISHED, 256, 3696, free, 8 * GB, reserve=3 * GB)
    with pytest.raises(ValueError, match=r"10\.00 GB .* are free, and 9\.90 GB are kept"):
        plan_pages(PUBLISHED, 8, 3696, free, reserve=99 * GB // 10)


class Book:
    """An arena beside what its slots should hold: `[tokens, layers, 2 * kv_heads, head_dim]`."""

    def __init__(self, slots: int, tokens: int, pages: int) -> None:
        self.cache = PagedCache(SMALL, slots, tokens, pages, CPU)
        self.kept: dict[int, Tensor] = {}
        self.lengths: dict[int, int] = {}

    def write(self, slot: int, count: int) -> None:
        """The next positions of a slot, as a step does: layer by layer."""
        own = torch.randn(count, SMALL.layers, 2 * SMALL.kv_heads, SMALL.head_dim)
        rows = torch.tensor(list(self.cache.rows(slot, len(self.kept[slot]), count)))
        for layer in range(SMALL.layers):
            self.cache.write(layer, rows[:, None] + self.cache.heads, own[:, layer])
        self.kept[slot] = torch.cat([self.kept[slot], own])

    def check(self) -> None:
        """All slots read what they wrote, by their own length and by the tables of all."""
        for slot, kept in self.kept.items():
            length = len(kept)
            cut = self.cache.cut(slot, max(1, length))
            pages = self.cache.tables[slot, : pages_of(max(1, length))]
            for part in range(2 * SMALL.layers):
                layer, first = part // 2, part % 2 * SMALL.kv_heads
                expected = kept[:, layer, first : first + SMALL.kv_heads].transpose(0, 1)
                assert cut[part].shape[2] == max(1, length)
                assert torch.equal(cut[part][0, :, :length], expected)
                table = self.cache.pages[part].index_select(1, pages)
                assert torch.equal(table.view(SMALL.kv_heads, -1, 4)[:, :length], expected)


@pytest.mark.parametrize("seed", range(6))
def test_slots_that_come_and_go_read_what_they_wrote_and_nothing_else(seed: int) -> None:
    """Some take the whole pages that another has written for the beginning of their own."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    slots, longest, pages = 5, 6 * PAGE, 13
    book = Book(slots, longest, pages)
    cache, scattered, shared = book.cache, 0, 0
    for _ in range(150):
        slot = generator.randrange(slots)
        if slot not in book.kept:
            tokens = generator.randrange(1, longest + 1)
            others = [other for other, kept in book.kept.items() if len(kept) >= PAGE]
            prefix, beginning = list[int](), torch.zeros(0, 2, 6, 4)
            if others and tokens > PAGE and generator.random() < 0.5:
                other = generator.choice(others)
                whole = min(len(book.kept[other]) // PAGE, (tokens - 1) // PAGE)
                prefix = list(cache.pages_at(other)[:whole])
                beginning = book.kept[other][: whole * PAGE]
            before = cache.pool.free
            if pages_of(tokens) - len(prefix) > before:
                with pytest.raises(ValueError, match="are free"):
                    cache.open(slot, tokens, prefix)
                assert cache.pool.free == before
                continue
            cache.open(slot, tokens, prefix)
            book.kept[slot], book.lengths[slot] = beginning, tokens
            scattered += isinstance(cache.cut(slot, 1), Gathered)
            shared += bool(prefix)
        elif (left := book.lengths[slot] - len(book.kept[slot])) and generator.random() < 0.7:
            book.write(slot, generator.randrange(1, min(left, 100) + 1))
        else:
            cache.close(slot)
            del book.kept[slot]
        book.check()
    assert scattered
    assert shared
    for slot in range(slots):
        cache.close(slot)
        cache.close(slot)  # once more is no fault
    assert cache.pool.free == pages
    assert cache.tables.eq(pages).all()


def test_a_page_that_others_read_is_never_written() -> None:
    book = Book(2, 200, 8)
    book.cache.open(0, 200)
    book.kept[0] = torch.zeros(0, 2, 6, 4)
    book.write(0, 130)
    book.cache.open(1, 200, book.cache.pages_at(0)[:2])
    for slot in (0, 1):
        for start, count in ((0, 1), (127, 1), (127, 2), (60, 100)):
            with pytest.raises(AssertionError, match="is shared"):
                book.cache.rows(slot, start, count)
    book.write(0, 70)
    # The one that began it has gone: the other holds it alone.
    book.cache.close(0)
    assert len(book.cache.rows(1, 127, 2)) == 2


@pytest.mark.parametrize("seed", range(20))
def test_random_holders_never_lose_a_page_nor_share_one_by_chance(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randrange(1, 60)
    pool = PagePool(count)
    held: list[list[int]] = []
    for _ in range(400):
        if held and generator.random() < 0.5:
            pool.give_back(held.pop(generator.randrange(len(held))))
        elif held and generator.random() < 0.3:
            whole = generator.choice(held)
            prefix = whole[: generator.randrange(len(whole) + 1)]
            pool.share(prefix)
            held.append(prefix)
        elif (wanted := generator.randrange(1, count + 1)) <= pool.free:
            others = {page for pages in held for page in pages}
            own = pool.take(wanted)
            assert len(set(own)) == wanted
            assert others.isdisjoint(own)
            held.append(own)
        else:
            with pytest.raises(ValueError, match=f"{wanted} pages .* {pool.free} are free"):
                pool.take(wanted)
        holders = Counter(page for pages in held for page in pages)
        assert [pool.holders(page) for page in range(count)] == [holders[p] for p in range(count)]
        assert pool.free == count - len(holders)
    for pages in held:
        pool.give_back(pages)
    assert pool.take(count) == [*range(count)]


def test_neighbours_are_given_where_there_are_enough_and_singles_where_not() -> None:
    pool = PagePool(8)
    first, second, third = pool.take(2), pool.take(1), pool.take(2)
    assert (first, second, third) == ([0, 1], [2], [3, 4])
    pool.give_back(second)
    assert pool.take(3) == [5, 6, 7]
    pool.give_back(first)
    pool.give_back(third)
    pool.take(1)
    assert pool.take(4) == [1, 2, 3, 4]
    pool.give_back([1, 3])
    assert pool.take(2) == [1, 3]


def test_a_page_that_nobody_holds_is_neither_shared_nor_given_back() -> None:
    pool = PagePool(3)
    pages = pool.take(2)
    pool.give_back(pages)
    with pytest.raises(AssertionError, match="free already"):
        pool.give_back(pages)
    with pytest.raises(AssertionError, match="is free"):
        pool.share([2])
