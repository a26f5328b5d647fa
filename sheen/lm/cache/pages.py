"""Which pages of the KV cache are free, and how many sequences hold each of the others.

Owns the reference counts, and which pages a sequence gets: the first run of neighbors that is long
enough, and single ones where there is none. Refuses to give more pages than are free, and to give
back a free one. Knows nothing of what a page contains. Not safe to share between threads
without a lock, but for reading `free`.
"""

from collections.abc import Sequence

FREE, HELD = 1, 0


class PagePool:
    """`count` pages, numbered from 0."""

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
