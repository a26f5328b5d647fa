"""Memory of processes and their descendants, sampled while a block runs.

Owns what is counted: of every process its share of what it has in memory (PSS, so that a page of
two processes counts once), and of Ray's object store the pages that lie in /dev/shm, once, whoever
has mapped them. Pages that were spilled to disk are no memory.
"""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Self

PROC = Path("/proc")
STORE = "/dev/shm/plasma"
BLOCK = 512  # bytes that st_blocks counts in


@dataclass(frozen=True)
class Process:
    """A process for as long as it lives: its id may be another's later."""

    pid: int
    born: int


@dataclass
class Sample:
    """Bytes at one moment. `parts`: the processes' by name."""

    parts: Counter[str] = field(default_factory=Counter)
    store: int = 0

    @property
    def processes(self) -> int:
        return self.parts.total()

    @property
    def total(self) -> int:
        return self.processes + self.store


def living() -> dict[Process, int]:
    """Every process of this machine, with its parent's id."""
    found = {}
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                # The name, in parentheses, may hold anything.
                words = (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended
            found[Process(int(folder.name), int(words[19]))] = int(words[1])
    return found


def name_of(pid: int) -> str:
    """The program, or what a Ray worker says that it does."""
    words = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    words = [word for word in words if word] or ["?"]
    if words[0].startswith("ray::"):
        return words[0].split()[0]
    program = PurePosixPath(words[0]).name
    scripts = [word for word in words[1:] if not word.startswith("-")]
    # The script that Python runs says more.
    return PurePosixPath(scripts[0]).name if program.startswith("python") and scripts else program


class Watch:
    """`with Watch([pid, ...], 0.2) as watch:` samples those processes and all that they start.

    `peak` is the sample with the largest total. Raises RuntimeError at the end if no object store
    was seen, or if sampling itself failed.
    """

    def __init__(self, roots: list[int], period: float) -> None:
        self.peak = Sample()
        self.peak_store = 0
        self.peak_processes = 0
        self.samples = 0
        self.longest_gap = 0.0
        """Seconds between two samples: a peak that is shorter may be missed."""
        self._period = period
        self._known = {process for process in living() if process.pid in roots}
        self._stores: dict[Process, list[Path]] = {}
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        if kind is not None:
            return
        if self._failure is not None:
            raise RuntimeError("memory could not be sampled") from self._failure
        if not self.peak_store:
            raise RuntimeError(f"no process has an object store in {STORE}*: its memory is unknown")

    def ours(self) -> set[Process]:
        """Those of the watched processes, and of all that they ever started, that live now."""
        alive = living()
        ids = {process.pid for process in self._known & alive.keys()}
        grown = True
        while grown:
            new = {process for process, parent in alive.items() if parent in ids} - self._known
            self._known |= new
            ids |= {process.pid for process in new}
            grown = bool(new)
        return self._known & alive.keys()

    def _run(self) -> None:
        try:
            last = time.monotonic()
            while not self._ended.wait(max(0.0, last + self._period - time.monotonic())):
                now = time.monotonic()
                if self.samples:
                    self.longest_gap = max(self.longest_gap, now - last)
                last = now
                self._take()
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self._failure = error

    def _take(self) -> None:
        sample = Sample()
        mapped = 0  # of shared memory, by page tables
        for process in self.ours():
            try:
                lines = (PROC / str(process.pid) / "smaps_rollup").read_text().splitlines()[1:]
                sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
                sample.parts[name_of(process.pid)] += sizes["Pss"] - sizes["Pss_Shmem"]
                mapped += sizes["Pss_Shmem"]
                sample.store += self._store_bytes(process)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended, and has no memory
        self.peak_store = max(self.peak_store, sample.store)
        # More is mapped than the store holds where something else shares memory.
        sample.store = max(sample.store, mapped)
        self.peak_processes = max(self.peak_processes, sample.processes)
        self.samples += 1
        if sample.total > self.peak.total:
            self.peak = sample

    def _store_bytes(self, process: Process) -> int:
        """Bytes in memory of the object store that this process keeps, 0 if it keeps none.

        The store's file has no name any more: it is found among what the raylet has open.
        """
        if process not in self._stores or not self._stores[process]:
            folder = PROC / str(process.pid) / "fd"
            raylet = name_of(process.pid) == "raylet"
            links = [link for link in folder.iterdir() if raylet and _is_store(link)]
            self._stores[process] = links
        return sum(os.stat(link).st_blocks * BLOCK for link in self._stores[process])


def _is_store(link: Path) -> bool:
    try:
        return os.readlink(link).startswith(STORE)
    except FileNotFoundError:
        return False  # closed since
