"""Chunks of a long text: packed from sentences in any rhythm, and joined to one stream.

None is packed before it is asked for. Nothing here needs a model.
"""

import asyncio
import random
from collections.abc import Sequence

import numpy as np
import pytest

from sheen.audio.samples import SILENCE, Samples
from sheen.engine.chunks import FADE_S, ONSET_S, SLICE, ChunkStream, Joiner, pause_after
from sheen.text.items import Item, Pause
from sheen.text.segmentation import SentenceStream

LIMIT = 30


class Normalizer:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, text: str) -> str:
        self.seen.append(text)
        return "" if text == "..." else text.lower()


async def drained(chunks: ChunkStream) -> list[Item]:
    found = []
    while (chunk := await chunks.next()) is not None:
        found.append(chunk)
    return found


def test_the_first_sentence_alone_and_the_others_together() -> None:
    async def run() -> list[Item]:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed(["One two.", "Three four.", "Five six.", "Seven eight nine ten."])
        chunks.close()
        return await drained(chunks)

    assert asyncio.run(run()) == ["one two.", "three four. five six.", "seven eight nine ten."]


def test_a_sentence_is_normalized_when_its_chunk_is_asked_for() -> None:
    async def run() -> None:
        normalizer = Normalizer()
        chunks = ChunkStream(normalizer, LIMIT)
        chunks.feed([f"Sentence {number} is here." for number in range(50)])
        chunks.close()
        assert await chunks.next() == "sentence 0 is here."
        assert len(normalizer.seen) == 1
        await chunks.next()
        assert len(normalizer.seen) <= 4

    asyncio.run(run())


def test_what_is_at_hand_is_not_kept_waiting_for_more_to_pack() -> None:
    async def run() -> None:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed(["One.", "Two."])
        assert [await chunks.next(), await chunks.next()] == ["one.", "two."]
        assert not chunks.last  # nobody has said that there is no more
        waiting = asyncio.create_task(chunks.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        chunks.feed(["Three."])
        assert await waiting == "three."
        chunks.close()
        assert chunks.last
        assert await chunks.next() is None

    asyncio.run(run())


def test_others_have_their_turn_while_a_long_text_is_cut() -> None:
    async def run() -> int:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(other())
        chunks, stream = ChunkStream(Normalizer(), LIMIT), SentenceStream()
        await chunks.feed_text("One. ( ?! A" * 400, stream)
        beside.cancel()
        chunks.close(stream)
        assert "".join(map(str, await drained(chunks))).count("one") == 400
        return turns

    assert asyncio.run(run()) >= 4400 // SLICE


def test_the_last_chunk_is_known_before_it_is_spoken() -> None:
    async def run() -> None:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed(["One.", "Two."])
        chunks.close()
        found = []
        while not chunks.last:
            found.append((await chunks.next(), chunks.last))
        assert found == [("one.", False), ("two.", True)]
        alone = ChunkStream(Normalizer(), LIMIT)
        alone.feed(["One."])
        alone.close()
        assert await alone.next() == "one."
        assert alone.last

    asyncio.run(run())


def test_a_sentence_with_nothing_to_say_gives_no_chunk() -> None:
    async def run(*sentences: str) -> list[Item]:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed(sentences)
        chunks.close()
        return await drained(chunks)

    assert asyncio.run(run("...", "One.", "...", "...")) == ["one."]
    assert asyncio.run(run("...")) == []
    assert asyncio.run(run()) == []


def test_a_long_sentence_becomes_several_chunks_of_all_its_words() -> None:
    words = " ".join(["seven"] * 40)

    async def run() -> list[str]:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed([words])
        chunks.close()
        return [str(chunk) for chunk in await drained(chunks)]

    found = asyncio.run(run())
    assert max(map(len, found)) <= LIMIT
    assert " ".join(found) == words


def test_a_pause_stands_between_chunks_and_is_known_before_it_is_due() -> None:
    async def run() -> list[tuple[Item, bool]]:
        chunks = ChunkStream(Normalizer(), LIMIT)
        chunks.feed(["One.", "Two.", Pause(1.0), "...", Pause(2.0), "Three.", "Four."])
        chunks.close()
        found = []
        while (item := await chunks.next()) is not None:
            found.append((item, chunks.pauses))
        return found

    assert asyncio.run(run()) == [
        ("one.", False),
        ("two.", True),
        (Pause(1.0), False),
        (Pause(2.0), False),
        ("three. four.", False),
    ]


RATE = 24_000
PAUSE_S = 0.3


def speech(seconds: float, before: float = 0.0, after: float = 0.0, level: float = 0.5) -> Samples:
    """A loud tone that starts and ends abruptly, between hisses below the threshold."""
    sound = np.full(round(seconds * RATE), level, np.float32)
    sound[::2] *= -1
    draw = np.random.default_rng(0)
    hiss = [
        draw.uniform(-0.009, 0.009, round(s * RATE)).astype(np.float32) for s in (before, after)
    ]
    return np.concatenate([hiss[0], sound, hiss[1]])


def join(chunks: Sequence[Samples], seed: int = 0, known: bool = True) -> list[Samples]:
    """The stream of each chunk, from chunks of random lengths. `known`: the last one is."""
    draw = random.Random(seed)
    joiner, streams = Joiner(RATE), []
    for number, chunk in enumerate(chunks):
        joiner.begin(PAUSE_S, last=known and number == len(chunks) - 1)
        parts, at = [np.zeros(0, np.float32)], 0
        while at < len(chunk):
            size = draw.choice([1, 7, 100, 2048, 24_576])
            parts.append(joiner.push(chunk[at : at + size]))
            at += size
        streams.append(np.concatenate([*parts, joiner.end()]))
    return streams


def silences(stream: Samples) -> list[int]:
    """Lengths of the runs without sound, at least 20 ms each."""
    loud = np.flatnonzero(np.abs(stream) >= SILENCE)
    gaps = np.diff(np.concatenate([[-1], loud, [len(stream)]])) - 1
    return [int(gap) for gap in gaps if gap >= 0.02 * RATE]


def test_one_chunk_passes_untouched_and_at_once() -> None:
    chunk = speech(0.5, before=0.7, after=0.9)
    joiner = Joiner(RATE)
    joiner.begin(PAUSE_S, last=True)
    np.testing.assert_array_equal(joiner.push(chunk), chunk)
    assert not len(joiner.end())


@pytest.mark.parametrize("before", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("after", [0.0, 0.002, 0.2, 0.3, 1.5])
def test_between_two_chunks_is_one_pause(before: float, after: float) -> None:
    stream = np.concatenate(join([speech(0.4, after=after), speech(0.4, before=before)]))
    [pause] = silences(stream)
    onset = min(before, ONSET_S)
    # What is loud while the fade goes down or up counts as sound.
    assert pause == pytest.approx((PAUSE_S + onset) * RATE, abs=2 * FADE_S * RATE)


@pytest.mark.parametrize("after", [0.0, 0.2, 1.5])
def test_before_a_pause_of_the_text_no_silence_is_added(after: float) -> None:
    joiner = Joiner(RATE)
    joiner.begin(PAUSE_S, last=False)
    stream = np.concatenate([joiner.push(speech(0.4, after=after)), joiner.end(pad=False)])
    assert stream.all()
    assert len(stream) == round((0.4 + min(after, PAUSE_S)) * RATE)


def test_a_seam_between_any_two_values_is_no_step() -> None:
    rows = [np.full(5000, level, np.float32) for level in (0.5, -0.7, 0.9)]
    stream = np.concatenate(join(rows))
    # As steep as a straight line over the fade, where an untreated seam jumps by 1.6.
    assert np.abs(np.diff(stream)).max() <= 1.01 * 0.9 / (FADE_S * RATE)


def test_the_cut_into_chunks_does_not_matter() -> None:
    chunks = [speech(0.3, 0.2, 0.8), speech(0.2, 0.4, 0.0), speech(0.1, 0.0, 0.1), speech(0.3, 2.0)]
    expected = join(chunks)
    for seed in range(1, 20):
        for stream, same in zip(join(chunks, seed), expected, strict=True):
            np.testing.assert_array_equal(stream, same)


def test_inside_a_chunk_nothing_changes() -> None:
    pause = np.concatenate([speech(0.3), speech(0.3, before=1.0)])
    first, second, _ = join([pause, pause, speech(0.1)])
    np.testing.assert_array_equal(first[: len(pause) - 120], pause[:-120])
    np.testing.assert_array_equal(second[120 : len(pause) - 120], pause[120:-120])


def test_a_chunk_without_a_sound_becomes_no_more_than_a_pause() -> None:
    nothing = speech(0.0, before=1.5)
    streams = join([speech(0.2), nothing, speech(0.2)])
    assert len(streams[1]) <= (PAUSE_S + FADE_S) * RATE
    assert len(join([nothing, np.zeros(0, np.float32)])[1]) == 0


def test_no_more_than_fade_and_long_silence_is_held_back() -> None:
    joiner = Joiner(RATE)
    joiner.begin(PAUSE_S, last=False)
    given = speech(0.5, after=0.1)
    assert len(joiner.push(given)) == len(given) - round(FADE_S * RATE)


def test_a_sentence_rests_longer_than_a_clause_and_that_longer_than_a_word() -> None:
    sentence, clause, word = (pause_after(text) for text in ('"Yes."', "yes,", "yes"))
    assert sentence > clause > word > 0
    assert pause_after("") == word
