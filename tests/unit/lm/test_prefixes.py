"""Beginnings of prompts that are kept: found by their tokens, and given up for others."""

from sheen.lm.cache.kv_cache import PAGE, PagePool
from sheen.lm.cache.prefixes import PrefixCache

CHUNK = 2 * PAGE


def prompt(chunks: int, first: int = 0) -> list[int]:
    return list(range(first, first + chunks * CHUNK + 1))


def kept(cache: PrefixCache, pool: PagePool, ids: list[int]) -> list[int]:
    """Pages of a request that has computed a prompt and has left."""
    keys = cache.keys(ids, len(ids))
    pages = pool.take(2 * len(keys) + 1)
    for number in range(len(keys)):
        cache.keep(keys[: number + 1], pages)
    pool.give_back(pages)
    cache.recount()
    return pages


def test_whole_chunks_are_found_by_their_tokens_and_those_before_them() -> None:
    pool = PagePool(20)
    cache = PrefixCache(pool, CHUNK)
    pages = kept(cache, pool, prompt(3))
    assert (pool.free, cache.reclaimable) == (14, 6)
    ids = prompt(3)
    assert cache.find(cache.keys(ids, len(ids))) == pages[:6]
    assert cache.find(cache.keys(ids[:-1], len(ids))) == pages[:4], "the last token is computed"
    assert cache.find(cache.keys(ids, 2 * CHUNK + 5)) == pages[:4], "no more than is shared"
    assert cache.find(cache.keys(ids[CHUNK:], len(ids))) == [], "the same chunk, elsewhere"
    other = [*ids[: 2 * CHUNK], 0, *ids[2 * CHUNK + 1 :]]
    assert cache.find(cache.keys(other, len(other))) == pages[:4]


def test_what_was_used_longest_ago_goes_first_and_what_a_request_has_stays() -> None:
    pool = PagePool(10)
    cache = PrefixCache(pool, CHUNK)
    first, second = prompt(2), prompt(2, first=5000)
    kept(cache, pool, first)
    kept(cache, pool, second)
    assert (pool.free, cache.reclaimable) == (2, 8)
    held = cache.find(cache.keys(first, len(first)))
    pool.share(held)  # a request takes them over
    cache.recount()
    assert cache.reclaimable == 4
    cache.make_room(4)
    assert cache.find(cache.keys(second, len(second)))[2:] == [], (
        "its end goes before its beginning"
    )
    assert len(cache.find(cache.keys(second, len(second)))) == 2
    cache.make_room(10)
    assert (pool.free, cache.reclaimable) == (6, 0)
    assert cache.find(cache.keys(first, len(first))) == held
    pool.give_back(held)
    cache.make_room(10)
    assert pool.free == 10
