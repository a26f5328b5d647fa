"""ChunkStream: sentences in, in any rhythm; chunks out, none before it is asked for."""

import asyncio

from sheen.engine.chunking import SLICE, ChunkStream
from sheen.text.segmentation import SentenceStream

LIMIT = 30


class Normaliser:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, text: str) -> str:
        self.seen.append(text)
        return "" if text == "..." else text.lower()


async def drained(chunks: ChunkStream) -> list[str]:
    found = []
    while (chunk := await chunks.next()) is not None:
        found.append(chunk)
    return found


def test_the_first_sentence_alone_and_the_others_together() -> None:
    async def run() -> list[str]:
        chunks = ChunkStream(Normaliser(), LIMIT)
        chunks.feed(["One two.", "Three four.", "Five six.", "Seven eight nine ten."])
        chunks.close()
        return await drained(chunks)

    assert asyncio.run(run()) == ["one two.", "three four. five six.", "seven eight nine ten."]


def test_a_sentence_is_normalised_when_its_chunk_is_asked_for() -> None:
    async def run() -> None:
        normaliser = Normaliser()
        chunks = ChunkStream(normaliser, LIMIT)
        chunks.feed([f"Sentence {number} is here." for number in range(50)])
        chunks.close()
        assert await chunks.next() == "sentence 0 is here."
        assert len(normaliser.seen) == 1
        await chunks.next()
        assert len(normaliser.seen) <= 4

    asyncio.run(run())


def test_what_is_at_hand_is_not_kept_waiting_for_more_to_pack() -> None:
    async def run() -> None:
        chunks = ChunkStream(Normaliser(), LIMIT)
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
        chunks, stream = ChunkStream(Normaliser(), LIMIT), SentenceStream()
        await chunks.feed_text("One. ( ?! A" * 400, stream)
        beside.cancel()
        chunks.close(stream)
        assert "".join(await drained(chunks)).count("one") == 400
        return turns

    assert asyncio.run(run()) >= 4400 // SLICE


def test_the_last_chunk_is_known_before_it_is_spoken() -> None:
    async def run() -> None:
        chunks = ChunkStream(Normaliser(), LIMIT)
        chunks.feed(["One.", "Two."])
        chunks.close()
        found = []
        while not chunks.last:
            found.append((await chunks.next(), chunks.last))
        assert found == [("one.", False), ("two.", True)]
        alone = ChunkStream(Normaliser(), LIMIT)
        alone.feed(["One."])
        alone.close()
        assert await alone.next() == "one."
        assert alone.last

    asyncio.run(run())


def test_a_sentence_with_nothing_to_say_gives_no_chunk() -> None:
    async def run(*sentences: str) -> list[str]:
        chunks = ChunkStream(Normaliser(), LIMIT)
        chunks.feed(sentences)
        chunks.close()
        return await drained(chunks)

    assert asyncio.run(run("...", "One.", "...", "...")) == ["one."]
    assert asyncio.run(run("...")) == []
    assert asyncio.run(run()) == []


def test_a_long_sentence_becomes_several_chunks_of_all_its_words() -> None:
    words = " ".join(["seven"] * 40)

    async def run() -> list[str]:
        chunks = ChunkStream(Normaliser(), LIMIT)
        chunks.feed([words])
        chunks.close()
        return await drained(chunks)

    found = asyncio.run(run())
    assert max(map(len, found)) <= LIMIT
    assert " ".join(found) == words
