"""A checkpoint's text normalisation in processes of its own.

Owns those processes. A sentence takes the library up to 0.1 s, with Python's lock held: in the
replica's own process everybody's audio would stop meanwhile.
"""

import asyncio
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from sheen.core.normalisation import NormalisationInfo, Normaliser, check, load_normaliser

_normaliser: Normaliser | None = None
"""Of a process of the pool."""


def _prepare(info: NormalisationInfo) -> None:
    global _normaliser
    _normaliser = load_normaliser(info)


def _normalise(text: str) -> str:
    assert _normaliser is not None
    return _normaliser(text)


class NormaliserProcesses:
    """`await` it with a text for its spoken form."""

    def __init__(self, info: NormalisationInfo, processes: int) -> None:
        """Returns when the first process is ready, in a minute where grammars must be compiled.
        ValueError where they cannot be loaded, see `sheen.core.normalisation.check`."""
        check(info)
        self._pool = ProcessPoolExecutor(processes, get_context("spawn"), _prepare, (info,))
        self._broken = False
        first: Future[str] = self._pool.submit(_normalise, "one")
        first.result()

    async def __call__(self, text: str) -> str:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, _normalise, text)
        except BrokenProcessPool:
            self._broken = True
            raise

    def alive(self) -> bool:
        """False once a process has died: the replica must be replaced."""
        return not self._broken

    def close(self) -> None:
        self._pool.shutdown()
