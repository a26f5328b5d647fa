"""Text normalization in processes of its own, shared fairly by requests.

Owns those processes and the order in which requests use them. The library takes up to a second for
a part of a sentence and holds Python's lock meanwhile; in the replica's own process that would stop
all audio. Requests take turns part by part, by fair queueing in virtual time (Demers,
Keshav, Shenker, 1989): the one that would finish first if all were served at once goes first, so a
page of numbers delays others by one part, and nobody waits forever. A part whose request was
cancelled is not started; one that exceeds its deadline is spoken as written, and counted.
"""

import asyncio
import heapq
import itertools
import logging
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from sheen.text.normalization import Part, join_parts, parts, spell_digits
from sheen.text.prompt import normalize
from sheen.text.segmentation import has_word
from sheen.text.steps import TextPipeline, check_steps

Item = TypeVar("Item")


@dataclass
class Client:
    """One client, with the virtual time at which all work that it has requested would be done."""

    until: float = 0.0


class Turns(Generic[Item]):
    """A fair queue: takes items with their client and their work, returns them one by one. For any
    threads."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, float, Item]] = []
        self._number = itertools.count()
        self._now = 0.0
        self._closed = False
        self._wake = threading.Condition()

    def put(self, client: Client, work: float, item: Item) -> None:
        """Raises RuntimeError after `close`."""
        with self._wake:
            if self._closed:
                raise RuntimeError("the queue is closed")
            client.until = max(self._now, client.until) + work
            heapq.heappush(self._heap, (client.until, next(self._number), work, item))
            self._wake.notify()

    def take(self) -> Item | None:
        """The next item; waits for one. None after `close`."""
        with self._wake:
            while not self._heap and not self._closed:
                self._wake.wait()
            if self._closed:
                return None
            share = len(self._heap)
            _, _, work, item = heapq.heappop(self._heap)
            self._now += work / share
            return item

    def close(self) -> list[Item]:
        """Close the queue. Returns the items that wait in it."""
        with self._wake:
            self._closed = True
            left = [item for *_, item in self._heap]
            self._heap.clear()
            self._wake.notify_all()
            return left


logger = logging.getLogger(__name__)

DEADLINE_S = 25.0
"""Longest time for one part, seconds: ten times the longest that was measured (decision 0020). The
work of a part is bounded, so beyond it something is broken, and the part is spoken as written."""


@dataclass(frozen=True)
class Words:
    """The words of a whole sentence, to be turned into phonemes."""

    text: str

    @property
    def work(self) -> float:
        """Work in letters of text normalization, each of which takes a hundred times as long."""
        return len(self.text) / 100


@dataclass(frozen=True)
class _Job:
    item: Part | Words
    answer: Future[str]


class NormalizerProcesses:
    """Processes that normalize texts; `reader()` returns a function for one request. `overdue`:
    parts that were spoken as written."""

    def __init__(
        self, pipeline: TextPipeline, processes: int, deadline_s: float = DEADLINE_S
    ) -> None:
        """Returns when the processes are ready, after a minute if grammars must be compiled.
        ValueError if they cannot be loaded, see `sheen.text.steps.check_steps`."""
        check_steps(pipeline.steps)
        assert pipeline.language is not None, "a pipeline without text normalization is quick"
        self.overdue = 0
        self._pipeline, self._deadline_s = pipeline, deadline_s
        self._language = pipeline.language
        self._turns: Turns[_Job] = Turns()
        self._broken = False
        self._helpers = [_Helper(pipeline) for _ in range(processes)]
        for helper in self._helpers:
            helper.wait_until_ready()
        self._workers = [
            threading.Thread(target=self._work, args=(place,), daemon=True)
            for place in range(processes)
        ]
        for worker in self._workers:
            worker.start()

    def reader(self) -> Callable[[str], Coroutine[Any, Any, str]]:
        """A function for one request: `await` it with a sentence for the normalized form that the
        model expects. After a cancellation no further part of the sentence is started."""
        client = Client()

        async def read(sentence: str) -> str:
            words = await self._sentence(client, sentence)
            if not words or not self._pipeline.has_phonemes:
                return words
            return await self._ask(client, Words(words))

        return read

    async def _sentence(self, client: Client, sentence: str) -> str:
        """The normalized form of a sentence, as `TextPipeline.words` returns it."""

        async def spoken(text: str) -> str:
            return join_parts([await self._words(client, part) for part in parts(normalize(text))])

        found = self._pipeline.fragments(sentence)
        if len(found) == 1 and not found[0].kept:
            return await spoken(sentence)
        words = []
        for fragment in found:
            before, core, after = fragment.split()
            changed = core if fragment.kept or not has_word(core) else await spoken(core)
            words += [before, changed, after]
        return normalize("".join(words))

    async def _words(self, client: Client, part: Part) -> str:
        if part.spelled:
            return spell_digits(part.text, self._language)
        return await self._ask(client, part)

    async def _ask(self, client: Client, item: Part | Words) -> str:
        job = _Job(item, Future())
        self._turns.put(client, item.work, job)
        return await asyncio.wrap_future(job.answer)

    def alive(self) -> bool:
        """False once a process has died: the replica must be replaced."""
        return not self._broken

    def close(self) -> None:
        for job in self._turns.close():
            job.answer.cancel()
        for worker in self._workers:
            worker.join()

    def _work(self, place: int) -> None:
        """Thread body: pass jobs to one process."""
        job = None
        try:
            while (job := self._turns.take()) is not None:
                if job.answer.set_running_or_notify_cancel():  # else it was cancelled
                    self._answer(place, job)
        except (OSError, EOFError, ValueError) as error:
            logger.error("a process that normalizes texts has ended: %s", error)
            self._broken = True
            waiting = self._turns.close()
            lost = [left for left in waiting if left.answer.set_running_or_notify_cancel()]
            if job is not None and not job.answer.done():
                lost.append(job)
            for left in lost:
                left.answer.set_exception(RuntimeError("a process that normalizes texts has ended"))
        finally:
            self._helpers[place].close()

    def _answer(self, place: int, job: _Job) -> None:
        answer = self._helpers[place].ask(job.item, self._deadline_s)
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        elif answer is not None:
            job.answer.set_result(answer)
        else:
            self.overdue += 1
            logger.error(
                "normalizing %d characters took more than %g s; they are spoken as written",
                len(job.item.text),
                self._deadline_s,
            )
            job.answer.set_result(job.item.text)
            self._helpers[place].close()
            self._helpers[place] = _Helper(self._pipeline)
            self._helpers[place].wait_until_ready()


class _Helper:
    """One process, which handles one item at a time. EOFError or OSError once it has died."""

    def __init__(self, pipeline: TextPipeline) -> None:
        context = get_context("spawn")  # a fork would copy locks that other threads hold
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, pipeline), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Raises ValueError when the process cannot load the grammars."""
        error = self._connection.recv()
        if error is not None:
            raise error

    def ask(self, item: Part | Words, deadline_s: float) -> str | Exception | None:
        """The normalized form of a part, the phonemes of words, or the exception that the library
        raised; None when the deadline passed first."""
        self._connection.send(item)
        if not self._connection.poll(deadline_s):
            return None
        answer: str | Exception = self._connection.recv()
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, pipeline: TextPipeline) -> None:
    """Process body: normalize the items received until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles a terminal's Ctrl-C
    try:
        pipeline.load()
    except ValueError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            item: Part | Words = connection.recv()
        except EOFError:
            return
        try:
            answer: str | Exception = (
                pipeline.part(item) if isinstance(item, Part) else pipeline.model_input(item.text)
            )
        except Exception as error:  # noqa: BLE001 - it is raised in the parent
            answer = RuntimeError(f"{type(error).__name__}: {error}")
        connection.send(answer)
