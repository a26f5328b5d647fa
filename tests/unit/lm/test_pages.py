"""Pages of the KV cache: never two owners by chance, never lost."""

import random
from collections import Counter

import pytest

from sheen.lm.cache.pages import PagePool


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
