"""Texts beside recordings: every segment gets the words that it speaks, as they are written."""

import random

import pytest

from sheen.prepare.alignment import match_words, texts_of_segments

BOOK = (
    "CHAPTER ONE. It was a well-known fact, said the old man, that no ship had ever come back from "
    "the northern sea. “Nobody believes you,” she answered; “and nobody ever will.” He laughed. "
    "The wind rose, the lamp went out, and in the dark they could hear the water under the floor — "
    "or was it the mice? On the 3rd of May a letter came. It held a map, two coins and a key."
)
SEGMENTS = [
    "CHAPTER ONE. It was a well-known fact, said the old man,",
    "that no ship had ever come back from the northern sea.",
    "“Nobody believes you,” she answered; “and nobody ever will.” He laughed.",
    "The wind rose, the lamp went out, and in the dark they could hear the water under the floor —",
    "or was it the mice?",
    "On the 3rd of May a letter came. It held a map, two coins and a key.",
]


def test_what_was_heard_well_gets_the_text_as_it_is_written() -> None:
    assert " ".join(SEGMENTS) == BOOK
    heard = [segment.lower().replace("“", "").replace("-", " ") for segment in SEGMENTS]
    assert texts_of_segments(heard, BOOK) == SEGMENTS


def test_words_that_were_misheard_at_the_seams_stay_with_their_segments() -> None:
    heard = [
        "captain one it was a well known fact said the cold man",
        "but no ship had ever come back from the northern see",
        "body believes you she answered and nobody ever will he left",
        "wind rose the lamp went out and in the dark they could hear the water under the floor",
        "or was it the mouse",
        "on the third of may a letter came it held a map two coins and a queue",
    ]
    assert texts_of_segments(heard, BOOK) == SEGMENTS


def test_what_is_not_in_the_text_has_none_and_takes_nothing_from_it() -> None:
    heard = [
        "this is a recording in the public domain read by somebody for everybody to hear",
        *[segment.lower() for segment in SEGMENTS[:2]],
        "please turn over the tape now",
        *[segment.lower() for segment in SEGMENTS[2:]],
        "the end of this recording",
    ]
    found = texts_of_segments(heard, BOOK)
    assert found == [None, *SEGMENTS[:2], None, *SEGMENTS[2:], None]


def test_a_passage_that_was_not_read_is_in_no_segment() -> None:
    heard = [SEGMENTS[0].lower(), SEGMENTS[1].lower(), SEGMENTS[5].lower()]
    assert texts_of_segments(heard, BOOK) == [SEGMENTS[0], SEGMENTS[1], SEGMENTS[5]]
    # One segment around the gap speaks neither side of it whole.
    joined = f"{SEGMENTS[1]} {SEGMENTS[5]}".lower()
    assert texts_of_segments([SEGMENTS[0].lower(), joined], BOOK) == [SEGMENTS[0], None]


def test_the_text_of_another_recording_is_found_nowhere() -> None:
    heard = ["a quarter past seven is much too early for a train to the coast", "she said so twice"]
    assert texts_of_segments(heard, BOOK) == [None, None]
    assert texts_of_segments(heard, "") == [None, None]
    assert texts_of_segments(["", "..."], BOOK) == [None, None]
    assert texts_of_segments([], BOOK) == []


def zipf_words(count: int, rng: random.Random) -> list[str]:
    words = [f"w{number}" for number in range(8000)]
    return rng.choices(words, [1 / (number + 3) for number in range(8000)], k=count)


@pytest.mark.parametrize("errors", [0.0, 0.1, 0.25])
def test_an_hour_out_of_a_long_book_is_placed_in_spite_of_errors(errors: float) -> None:
    rng = random.Random(11)
    book = zipf_words(40_000, rng)
    first, end = 22_000, 28_000
    spoken: list[str] = []
    truth: list[int] = []
    for place in range(first, end):
        drawn = rng.random()
        if drawn < errors / 3:
            continue
        spoken.append("wrong" if drawn < errors * 2 / 3 else book[place])
        truth.append(place)
        if drawn > 1 - errors / 3:
            spoken.append(rng.choice(book))
            truth.append(-1)
    places = match_words(spoken, book)
    known = [(int(got), true) for got, true in zip(places, truth, strict=True) if true >= 0]
    right = sum(got == true for got, true in known) / len(known)
    assert right > (0.999 if not errors else 1 - 0.5 * errors)
    found = [got for got, _ in known if got >= 0]
    assert min(found) >= first - 100
    assert max(found) < end + 100
    row = [int(place) for place in places if place >= 0]
    assert row == sorted(set(row))
