"""Parts run one after the other in a process of their own, each with a deadline.

Owns the deadlines, what becomes of a part that fails or hangs, and the order of what is reported:
each row at once. The process that computes is another one than that which reports, because a kernel
that hangs can only be killed, and after a fault of the device its process computes nothing any
more. After a part that did not finish, the next one has a new process. Knows nothing about what is
measured.
"""

import importlib
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

START_S = 60.0
"""To import torch, open the device and measure its ceilings."""
SHORTEST_S = 3.0
"""A part with less time than this is not begun."""


@dataclass(frozen=True)
class Part:
    """`target` is `module:function`, of a function that takes a `Bench`."""

    name: str
    target: str
    seconds: float
    """Its deadline."""
    shows: str


@dataclass
class Outcome:
    """Of a part. `ended` is "finished", "failed" (an exception), "stopped" (at its deadline),
    "died" (the process did) or "not run"."""

    part: str
    ended: str = "not run"
    seconds: float = 0.0
    error: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.ended == "finished" and all(row["passed"] is not False for row in self.rows)


Report = Callable[[Outcome, dict[str, Any] | None], object]
"""Called with each row as it comes, and with None when its part has ended."""


class Runner:
    """`patience` multiplies the deadlines of parts; `seconds` are those of the whole."""

    def __init__(self, device: str, small: bool, seconds: float, patience: float = 1.0) -> None:
        self._device, self._small, self._patience = device, small, patience
        self.start_s = START_S * patience
        self._ends = time.monotonic() + seconds
        self._process: Any = None
        self._connection: Connection | None = None

    def run(self, parts: Sequence[Part], report: Report) -> Iterator[Outcome]:
        """The outcome of each part, as they end."""
        try:
            for part in parts:
                outcome = Outcome(part.name)
                started = time.monotonic()
                self._run(part, outcome, report)
                outcome.seconds = time.monotonic() - started
                report(outcome, None)
                yield outcome
        finally:
            self.close()

    def close(self) -> None:
        """End the process, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    @property
    def _left(self) -> float:
        """Seconds of the whole."""
        return self._ends - time.monotonic()

    def _run(self, part: Part, outcome: Outcome, report: Report) -> None:
        if self._process is not None and not self._process.is_alive():
            self.close()  # it died after its last part
        if self._left < SHORTEST_S:
            outcome.error = "no time was left"
            return
        if self._connection is None and not self._start(outcome):
            return
        assert self._connection is not None
        seconds = min(part.seconds * self._patience, self._left)
        self._connection.send((part.target, seconds))
        ends = time.monotonic() + seconds
        while (message := self._receive(ends, outcome)) is not None:
            kind, content = message
            if kind == "row":
                outcome.rows.append(content)
                report(outcome, content)
                continue
            outcome.ended, outcome.error = kind, content
            if kind != "finished":
                break
            return
        self.close()

    def _start(self, outcome: Outcome) -> bool:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: a compiler has processes of its own.
        self._process = context.Process(target=compute, args=(theirs, self._device, self._small))
        self._process.start()
        theirs.close()
        ends = min(time.monotonic() + self.start_s, self._ends)
        message = self._receive(ends, outcome)
        if message is None or message[0] != "ready":
            if message is not None:
                outcome.ended, outcome.error = message
            self.close()
            return False
        return True

    def _receive(self, ends: float, outcome: Outcome) -> tuple[str, Any] | None:
        """The next message; None when there is none by the deadline or any more."""
        assert self._connection is not None
        if not self._connection.poll(max(0.0, ends - time.monotonic())):
            outcome.ended, outcome.error = "stopped", "at its deadline"
            return None
        try:
            message: tuple[str, Any] = self._connection.recv()
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            outcome.ended = "died"
            outcome.error = f"its process ended with {self._process.exitcode}"
            return None
        return message


def compute(connection: Connection, device: str, small: bool) -> None:
    """The process that computes: parts as they are asked for, until the connection closes."""
    # What any part meets is recorded in its row, whatever was raised: a GPU is at hand rarely, and
    # the parts that follow have to be measured. Nothing else in the tree catches so much.
    try:
        import torch

        from acceptance.bench import Bench, measure_ceilings

        place = torch.device(device)
        if place.type == "cuda":
            place = torch.device("cuda", place.index or 0)
            torch.cuda.set_device(place)
        bench = Bench(
            place,
            small,
            measure_ceilings(place, small),
            lambda row: connection.send(("row", row.as_json())),
        )
    except Exception as error:  # noqa: BLE001
        connection.send(("failed", _describe(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            target, seconds = connection.recv()
        except EOFError:
            return
        bench.ends = time.monotonic() + seconds
        module, _, function = target.partition(":")
        try:
            getattr(importlib.import_module(module), function)(bench)
            bench.synchronize()
        except Exception as error:  # noqa: BLE001
            connection.send(("failed", _describe(error)))
        else:
            connection.send(("finished", ""))
        try:
            bench.release()
        except Exception as error:  # noqa: BLE001 - the next part will meet it too, and say so
            print(f"after {target}: {_describe(error)}", flush=True)


def _describe(error: Exception) -> str:
    """The exception's name and text, and where in our files it was raised."""
    lines = traceback.format_exception(error)
    return f"{type(error).__name__}: {error}\n{''.join(lines[-12:])}"
