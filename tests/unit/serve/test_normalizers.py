"""Normalization in processes of its own: the same words, and nobody delayed by another's text.

The English grammars are compiled once on a machine, in some 20 s.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from sheen.serve import normalizers
from sheen.serve.normalizers import NormalizerProcesses
from sheen.text.kept import with_phonemes
from sheen.text.normalization import describe, load_normalizer
from sheen.text.phonemes import describe as describe_phonemes
from sheen.text.segmentation import SentenceStream
from sheen.text.steps import NormalizerStep, TextPipeline

WAIT_S = 60.0
DENSE = "we met at 10:30, and 3.14 is less than $5.20, so that " * 18
"""As much work as a sentence may be: 18 parts."""
TABLE = "3.14, 2.71, 1.41, 1.73, " * 41


@contextmanager
def opened(*further: NormalizerStep, tags: tuple[str, ...] = ()) -> Iterator[NormalizerProcesses]:
    processes = NormalizerProcesses(TextPipeline((describe("en"), *further), tags), 1, WAIT_S)
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def one() -> Iterator[NormalizerProcesses]:
    with opened() as processes:
        yield processes


@pytest.fixture
def processes(one: NormalizerProcesses) -> NormalizerProcesses:
    """Done with what a test before has left."""
    assert asyncio.run(one.reader()("It is 10:30.")) == "It is ten thirty."
    return one


@pytest.fixture(scope="module")
def phonemes() -> Iterator[NormalizerProcesses]:
    with opened(describe_phonemes("en"), tags=("<laugh>",)) as processes:
        yield processes


@contextmanager
def held(processes: NormalizerProcesses) -> Iterator[None]:
    """Its one process stands still meanwhile."""
    child = child_of(processes)
    os.kill(child, signal.SIGSTOP)
    yield
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGCONT)


def child_of(processes: NormalizerProcesses) -> int:
    pid = processes._helpers[0]._process.pid
    assert pid is not None
    return pid


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the library is given, in order."""
    seen: list[str] = []
    ask = normalizers._Helper.ask

    def noting(self: Any, item: Any, deadline_s: float) -> Any:
        seen.append(item.text)
        return ask(self, item, deadline_s)

    monkeypatch.setattr(normalizers._Helper, "ask", noting)
    return seen


@pytest.mark.slow
def test_a_text_has_the_same_words_as_at_encoding(processes: NormalizerProcesses) -> None:
    text = f"On 3/4/2024 I paid $5. {DENSE[:300]}. {TABLE}! Was it 10:30?\n---\n(50%) It was."
    stream = SentenceStream("en")
    sentences = stream.push(text) + stream.finish()

    async def run() -> list[str]:
        read = processes.reader()
        return [await read(sentence) for sentence in sentences]

    spoken = " ".join(asyncio.run(run()))
    assert spoken == load_normalizer(describe("en"))(text)
    assert "three. one four, two. seven one" in spoken
    assert "ten thirty" in spoken


@pytest.mark.slow
def test_a_text_has_the_same_phonemes_as_at_encoding(phonemes: NormalizerProcesses) -> None:
    steps = describe_phonemes("en")
    text = f"On 3/4/2024 I paid $5. {DENSE[:300]}. {TABLE}! Was it 10:30?\n---\n(50%) 你好. It was."
    stream = SentenceStream("en")
    sentences = stream.push(text) + stream.finish()

    async def run() -> list[str]:
        read = phonemes.reader()
        return [await read(sentence) for sentence in sentences]

    taught = " ".join(filter(None, asyncio.run(run())))
    assert taught == TextPipeline((describe("en"), steps))(text)
    assert "tˈɛn θˈɜɹTi" in taught


@pytest.mark.slow
def test_tags_and_phonemes_that_were_given_pass_as_at_encoding(
    phonemes: NormalizerProcesses,
) -> None:
    pipeline = TextPipeline((describe("en"), describe_phonemes("en")), ("<laugh>",))
    sentence = f"On 3/4 <laugh>, {with_phonemes('Nguyen', 'nwˈɪn')} paid $5!"
    taught = asyncio.run(phonemes.reader()(sentence))
    assert taught == pipeline.model_input(pipeline.words(sentence))
    assert "<laugh>, nwˈɪn " in taught


@pytest.mark.slow
def test_a_listener_is_not_kept_waiting_by_pages_of_numbers(
    processes: NormalizerProcesses, asked: list[str]
) -> None:
    async def run() -> None:
        with held(processes):
            tasks = [asyncio.create_task(processes.reader()(DENSE)) for _ in range(6)]
            tasks += [asyncio.create_task(processes.reader()(TABLE)) for _ in range(6)]
            await until(lambda: len(asked) == 1)
            listener = asyncio.create_task(processes.reader()("It is 10:30."))
            await until(lambda: all(task.done() for task in tasks[6:]))
        assert await listener == "It is ten thirty."
        # Of the others only the part that had begun was before it.
        assert asked[1] == "It is 10:30."
        for task in tasks:
            task.cancel()

    asyncio.run(run())


@pytest.mark.slow
def test_what_nobody_waits_for_is_not_begun(
    processes: NormalizerProcesses, asked: list[str]
) -> None:
    async def run() -> None:
        with held(processes):
            left = [asyncio.create_task(processes.reader()(DENSE)) for _ in range(6)]
            await until(lambda: len(asked) == 1)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        assert await processes.reader()("It is 10:30.") == "It is ten thirty."
        assert len(asked) == 2

    asyncio.run(run())


@pytest.mark.slow
def test_a_part_beyond_the_deadline_is_taken_as_written_and_counted(
    processes: NormalizerProcesses,
) -> None:
    async def run() -> None:
        processes._deadline_s = 0.2
        with held(processes):
            assert await processes.reader()("It is 10:30.") == "It is 10:30."
            assert processes.overdue == 1
            processes._deadline_s = WAIT_S
            # By a process in the other's place.
            assert await processes.reader()("It is 10:30.") == "It is ten thirty."
        assert processes.alive()

    asyncio.run(run())


@pytest.mark.slow
def test_the_end_of_a_process_is_noticed_by_all_who_wait() -> None:
    async def run(reader: Callable[[], Callable[[str], Coroutine[Any, Any, str]]]) -> None:
        with held(processes):
            tasks = [asyncio.create_task(reader()("It is 10:30.")) for _ in range(3)]
            await asyncio.sleep(0)
            os.kill(child_of(processes), signal.SIGKILL)
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert "has ended" in str(outcome)
        assert not processes.alive()
        with pytest.raises(RuntimeError):
            await reader()("It is 10:30.")

    with opened() as processes:
        assert processes.alive()
        asyncio.run(run(processes.reader))
