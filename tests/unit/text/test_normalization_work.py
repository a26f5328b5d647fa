"""What is normalized at once: bounded, the whole sentence, and the same for the same text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sheen.text.normalization import LONGEST_PART, MOST_SIGNS, Part, parts, spell_digits
from sheen.text.prompt import normalize

ROWS = [
    "3.14, 2.71, ", "1,", "1, ", "4 ", "1-", "1999 ", "192.168.0.1 ", "555-123-4567 ", "$5.20 ",
    "10:30 ", "| 3 | 4.5 |", "1234567890", "½ ", "٣ ", '" ', "[1] ", "+ ", "—", "a. ", "a1 ",
    "Dr. ", "x", "WORD ", "Word, ", "word ", "a b ", "é", "你好", "e\u0301", "and 3.14, 2.71, ",
]  # fmt: skip
"""What a text may be made of that is a thousand characters long."""


def signs(text: str) -> int:
    return sum(not (c.isalpha() or c.isspace() or "\u0300" <= c < "\u0370") for c in text)


@pytest.mark.parametrize("row", ROWS)
def test_whatever_is_repeated_is_normalized_in_parts_of_bounded_work(row: str) -> None:
    sentence = normalize((row * 1000)[:1000])
    for part in parts(sentence):
        if not part.spelled:
            assert len(part.text) <= LONGEST_PART
            assert signs(part.text) <= MOST_SIGNS
            assert part.work <= LONGEST_PART + 9 * MOST_SIGNS
    assert " ".join(part.text for part in parts(sentence)) == sentence


WORDS = st.sampled_from(
    [
        "one",
        "and",
        "Two",
        "VIII",
        "3.14,",
        "$5.20",
        "well,",
        "10:30",
        "p.m.",
        "—",
        "(so)",
        "x" * 130,
    ]
)


@example("")
@given(st.lists(WORDS, max_size=60).map(" ".join) | st.text(max_size=300))
def test_parts_are_the_sentence(text: str) -> None:
    sentence = normalize(text)
    found = list(parts(sentence))
    assert " ".join(part.text for part in found) == sentence
    assert all(part.text for part in found)
    assert found == list(parts(sentence))


@pytest.mark.parametrize(
    "sentence",
    [
        "Four two seven.",
        "On March 4, 2024 at 10:30 a.m. Dr. Smith paid $1,234.56 to Jane Doe, of 42 Main St.",
        "Call 555-123-4567 or 555-765-4321, between 9:00 and 17:30.",
    ],
)
def test_what_people_write_is_one_part(sentence: str) -> None:
    assert list(parts(sentence)) == [Part(sentence)]


def test_a_long_sentence_is_cut_where_nothing_goes_on() -> None:
    """Between two words of small letters: no date, amount, unit, title or abbreviation is cut."""
    whole = (
        "In the spring of 1836, as the river rose 12 ft. above its banks, Dr. John Smith VIII and "
        "his men left for St. Louis with 1,200 lb. of flour, which they sold for $5.20 a bag on "
        "March 4, 1837, as the papers of that year say."
    )
    assert [part.text for part in parts(whole)] == [
        "In the spring of 1836, as the river rose 12 ft. above its banks, Dr. John Smith VIII and "
        "his men left",
        "for St. Louis with 1,200 lb. of flour, which they sold for $5.20 a bag on March 4, 1837, "
        "as the papers of that year say.",
    ]


def test_a_table_of_numbers_is_spelled_and_the_words_around_it_are_not() -> None:
    row = ", ".join(["3.14", "2.71", "1.41"] * 6)
    found = list(parts(f"the values are {row}, and then the $5 are gone"))
    assert found == [
        Part("the values"),
        Part(f"are {row}, and", spelled=True),
        Part("then the $5 are gone"),
    ]


@pytest.mark.parametrize(
    ("language", "written", "spoken"),
    [
        ("en", "3.14, -27", "three. one four, - two seven"),
        ("de", "(12) | 0", "( eins zwei) | null"),
        ("hu", "٣x9", "három x kilenc"),
        ("en", "no digit … ½", "no digit … ½"),
    ],
)
def test_a_table_is_read_digit_by_digit(language: str, written: str, spoken: str) -> None:
    assert spell_digits(written, language) == spoken
