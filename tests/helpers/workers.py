"""Ray's worker processes of the clusters that this process has started."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from helpers.knocking import Listener, listeners

LOOPBACK = {"127.0.0.1", "::1"}


def listening() -> list[Listener]:
    """What listens of this process and of all that it has started."""
    this = psutil.Process()
    family = {process.pid for process in (this, *this.children(recursive=True))}
    return listeners(Path("/proc/self/net"), family)


def workers(title: str) -> list[psutil.Process]:
    """Those with this in the title that Ray gives them. Tests beside this one have workers too."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if line.startswith("ray::") and title in line:
                found.append(process)
    return found


@contextmanager
def standing_still(processes: list[psutil.Process]) -> Iterator[None]:
    """Their work cannot end meanwhile, however late this process gets to its own."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
