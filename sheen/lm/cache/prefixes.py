"""Beginnings of prompts whose keys and values stay in the KV cache when their request has ended.

Owns which pages hold which beginning, by its token ids, and which beginnings go when their pages
are needed: the ones used longest ago that no request has. A beginning is kept in whole chunks of a
prompt as it is computed, so a request that takes it over computes the rest as if it had computed
all: its tokens are the same bits. Knows nothing of what the tokens mean, nor which are worth
keeping. One thread's, but for reading `reclaimable`.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from sheen.lm.cache.kv_cache import PAGE, PagePool

Key = bytes


class PrefixCache:
    """Kept beginnings over the pages of `pool`; a chunk is `tokens` tokens, whole pages."""

    def __init__(self, pool: PagePool, tokens: int) -> None:
        assert tokens % PAGE == 0, "a chunk is whole pages"
        self._pool = pool
        self._tokens = tokens
        self._kept: OrderedDict[Key, list[int]] = OrderedDict()  # used longest ago first
        self.reclaimable = 0
        """Pages that are kept and that no request has, as of the last `recount`."""

    def keys(self, prompt: Sequence[int], shared: int) -> list[Key]:
        """A key for each whole chunk within the first `shared` tokens: a hash of it and all before
        it. Never of a whole prompt: its last token has to be computed."""
        chunks = min(shared, len(prompt) - 1) // self._tokens
        ids = np.array(prompt[: chunks * self._tokens], np.int64)
        keys, before = list[Key](), b""
        for chunk in ids.reshape(chunks, self._tokens):
            before = hashlib.sha256(before + chunk.tobytes()).digest()
            keys.append(before)
        return keys

    def find(self, keys: Sequence[Key]) -> list[int]:
        """The pages of the leading chunks that are kept. The next `make_room` may free them unless
        the caller holds them."""
        found = list[Key]()
        for key in keys:
            if key not in self._kept:
                break
            found.append(key)
        self._used(found)
        return [page for key in found for page in self._kept[key]]

    def keep(self, keys: Sequence[Key], pages: Sequence[int]) -> None:
        """Keep the last of these chunks, which has been written; `pages`: those of its slot."""
        if keys[-1] not in self._kept:
            each = self._tokens // PAGE
            own = list(pages[(len(keys) - 1) * each : len(keys) * each])
            self._pool.share(own)
            self._kept[keys[-1]] = own
        self._used(keys)

    def _used(self, keys: Sequence[Key]) -> None:
        # Later chunks first, as if they were older: none must outlive what it stands on.
        for key in reversed(keys):
            if key in self._kept:
                self._kept.move_to_end(key)

    def make_room(self, pages: int) -> None:
        """Free chunks until so many pages are free, or no chunk without a holder is left."""
        for key in list(self._kept):
            if self._pool.free >= pages:
                break
            if self._idle(key):
                self._pool.give_back(self._kept.pop(key))
        self.recount()

    def recount(self) -> None:
        """To be called when a request has taken pages or given them back."""
        self.reclaimable = sum(len(self._kept[key]) for key in self._kept if self._idle(key))

    def _idle(self, key: Key) -> bool:
        # A request that holds a page of a chunk holds all of them.
        return self._pool.holders(self._kept[key][0]) == 1
