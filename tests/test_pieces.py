"""Pieces: sentences in, in any rhythm; pieces out, none before it is asked for."""

import asyncio

from sheen.engine.longform import SLICE, Pieces
from sheen.text.segmentation import SentenceStream

LIMIT = 30


class Normaliser:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def __call__(self, text: str) -> str:
        self.seen.append(text)
        return "" if text == "..." else text.lower()


async def drained(pieces: Pieces) -> list[str]:
    found = []
    while (piece := await pieces.next()) is not None:
        found.append(piece)
    return found


def test_the_first_sentence_alone_and_the_others_together() -> None:
    async def run() -> list[str]:
        pieces = Pieces(Normaliser(), LIMIT)
        pieces.feed(["One two.", "Three four.", "Five six.", "Seven eight nine ten."])
        pieces.close()
        return await drained(pieces)

    assert asyncio.run(run()) == ["one two.", "three four. five six.", "seven eight nine ten."]


def test_a_sentence_is_normalised_when_its_piece_is_asked_for() -> None:
    async def run() -> None:
        normaliser = Normaliser()
        pieces = Pieces(normaliser, LIMIT)
        pieces.feed([f"Sentence {number} is here." for number in range(50)])
        pieces.close()
        assert await pieces.next() == "sentence 0 is here."
        assert len(normaliser.seen) == 1
        await pieces.next()
        assert len(normaliser.seen) <= 4

    asyncio.run(run())


def test_what_is_at_hand_is_not_kept_waiting_for_more_to_pack() -> None:
    async def run() -> None:
        pieces = Pieces(Normaliser(), LIMIT)
        pieces.feed(["One.", "Two."])
        assert [await pieces.next(), await pieces.next()] == ["one.", "two."]
        assert not pieces.last  # nobody has said that there is no more
        waiting = asyncio.create_task(pieces.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        pieces.feed(["Three."])
        assert await waiting == "three."
        pieces.close()
        assert pieces.last
        assert await pieces.next() is None

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
        pieces, stream = Pieces(Normaliser(), LIMIT), SentenceStream()
        await pieces.feed_text("One. ( ?! A" * 400, stream)
        beside.cancel()
        pieces.close(stream)
        assert "".join(await drained(pieces)).count("one") == 400
        return turns

    assert asyncio.run(run()) >= 4400 // SLICE


def test_the_last_piece_is_known_before_it_is_spoken() -> None:
    async def run() -> None:
        pieces = Pieces(Normaliser(), LIMIT)
        pieces.feed(["One.", "Two."])
        pieces.close()
        found = []
        while not pieces.last:
            found.append((await pieces.next(), pieces.last))
        assert found == [("one.", False), ("two.", True)]
        alone = Pieces(Normaliser(), LIMIT)
        alone.feed(["One."])
        alone.close()
        assert await alone.next() == "one."
        assert alone.last

    asyncio.run(run())


def test_a_sentence_with_nothing_to_say_gives_no_piece() -> None:
    async def run(*sentences: str) -> list[str]:
        pieces = Pieces(Normaliser(), LIMIT)
        pieces.feed(sentences)
        pieces.close()
        return await drained(pieces)

    assert asyncio.run(run("...", "One.", "...", "...")) == ["one."]
    assert asyncio.run(run("...")) == []
    assert asyncio.run(run()) == []


def test_a_long_sentence_becomes_several_pieces_of_all_its_words() -> None:
    words = " ".join(["seven"] * 40)

    async def run() -> list[str]:
        pieces = Pieces(Normaliser(), LIMIT)
        pieces.feed([words])
        pieces.close()
        return await drained(pieces)

    found = asyncio.run(run())
    assert max(map(len, found)) <= LIMIT
    assert " ".join(found) == words
