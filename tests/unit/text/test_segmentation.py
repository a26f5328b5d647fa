"""Sentences and chunks: what is cut where, and that nothing is lost."""

import itertools

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

import sheen.text.segmentation as text_module
from sheen.text.segmentation import (
    LONGEST_SENTENCE,
    SentenceStream,
    TextChunker,
    has_word,
    split_sentences,
)

WORDS = st.sampled_from(
    ["he", "Yes!", "What?!", "Mr.", "U.S.", "No.", "5", "3.5", "1.", "end.", "...", "…", "?", "(I",
     "am.)", '"Stop.', 'Now."', "'", "“Go.", "now.”", "[1]", "a@b.co", "Hi.Yo", "你好。", "好！",
     "ok।", "—", ",",
     "😀", "+", "`", "|---|", "\n", "\r\n", "\u2028", "\t",
     "x" * 400, "é", "e\u0301", "👩\u200d👧", "$5.20"]
)  # fmt: skip
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", " ", "  ", ""])), max_size=25).map(
    lambda pairs: "".join(word + space for word, space in pairs)
)
"""Texts that ask for every rule, and any text at all."""
ANY = TEXTS | st.text(max_size=80)


def parts_of(text: str, cuts: list[int]) -> list[str]:
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[first:last] for first, last in itertools.pairwise(bounds)]


def letters(text: str) -> list[str]:
    return regex.findall(r"[\p{L}\p{N}]", text)


def cut(limit: int, *sentences: str) -> list[str]:
    cutter = TextChunker(limit)
    return [chunk for sentence in sentences for chunk in cutter.push(sentence)] + cutter.finish()


# Sentences


def test_sentences_end_where_a_reader_stops() -> None:
    text = "Mr. Smith paid $5.20 to J. Doe! Did he? He did... in the U.S. Well.  That was No. 5."
    assert split_sentences(text, "en") == [
        "Mr. Smith paid $5.20 to J. Doe!", "Did he?", "He did... in the U.S.", "Well.",
        "That was No. 5.",
    ]  # fmt: skip


def test_languages_have_their_own_ends() -> None:
    assert split_sentences("你好。再见！好", "zh") == ["你好。", "再见！", "好"]
    assert split_sentences("Das ist z.B. gut. Ja.", "de") == ["Das ist z.B. gut.", "Ja."]
    assert split_sentences("One. Two.", "xx") == split_sentences("One. Two.") == ["One.", "Two."]


def test_a_line_break_ends_a_sentence() -> None:
    assert split_sentences("A list:\n- one\r\n- two\n\n\nIt ends") == [
        "A list:", "- one", "- two", "It ends",
    ]  # fmt: skip


def test_quotes_and_brackets_stay_together_while_they_are_short() -> None:
    quote = 'He said "Stop. Now." Then (as he could. Yes.) he left. I stayed.'
    assert split_sentences(quote) == [
        'He said "Stop. Now."', "Then (as he could. Yes.) he left.", "I stayed.",
    ]  # fmt: skip
    never_closed = 'He said "stop. ' + "He went on. " * 40
    assert len(split_sentences(never_closed)) > 10


WORDLESS = [
    "", " ", "\u200b", "---", "...", "**", "%", "—", "$", "😀", "🏻", "👩\u200d👧", "♥", "+", "~",
    "^", "```", "|---|---|", "> ", "=" * 80, "\u0301", "\x1b", "(", "«»", "🇩🇪", "→", "∞",
]  # fmt: skip
WITH_WORDS = ["a", "7", "½", "Ⅷ", "③", "你", "ש", "ß", "ª", "٣", "ひ", "$5", "+ 1", "😀a"]


def test_a_word_is_a_letter_or_a_number_of_any_script() -> None:
    assert [text for text in WORDLESS if has_word(text)] == []
    assert [text for text in WITH_WORDS if not has_word(text)] == []


def test_what_has_no_word_is_neither_sentence_nor_chunk() -> None:
    for text in WORDLESS:
        assert split_sentences(f"One.\n{text}\nTwo.\n{text}") == ["One.", "Two."], text
        assert split_sentences(text) == cut(20, text) == []
    assert cut(8, "yes " + "+" * 40 + " no") == ["yes", "+++++ no"]


def test_what_says_nothing_is_no_sentence() -> None:
    assert split_sentences("— Yes. … No. !!!") == ["— Yes.", "… No. !!!"]
    assert split_sentences("One.\n---\nTwo.") == ["One.", "Two."]


def test_a_sentence_is_out_when_the_next_word_is() -> None:
    stream = SentenceStream("en")
    assert stream.push("One is") == stream.push(" here. ") == stream.push("Two") == []
    assert stream.push(" ") == ["One is here."]
    assert stream.push("are there\n") == ["Two are there"]
    assert stream.push("你好。再") == ["你好。"]
    assert stream.finish() == ["再"]
    assert stream.finish() == []
    assert stream.push("Again.") == []
    assert stream.finish() == ["Again."]


@example("One. Two", [5, 6, 7])
@example("a\r\nb", [2])
@given(ANY, st.lists(st.integers(0, 10_000), max_size=30))
def test_the_parts_a_text_comes_in_do_not_matter(text: str, cuts: list[int]) -> None:
    stream = SentenceStream("en")
    found = [sentence for part in parts_of(text, cuts) for sentence in stream.push(part)]
    assert found + stream.finish() == split_sentences(text, "en")


@given(ANY)
def test_sentences_are_the_text(text: str) -> None:
    """In order, without white space at their ends; only what says nothing may be missing."""
    at = 0
    for sentence in split_sentences(text):
        assert sentence == sentence.strip()
        assert 0 < len(sentence) <= LONGEST_SENTENCE
        found = text.index(sentence, at)
        assert not has_word(text[at:found])
        at = found + len(sentence)
    assert not has_word(text[at:])


def test_a_text_without_an_end_is_cut_between_words() -> None:
    text = "one two three " * 500
    sentences = split_sentences(text)
    assert " ".join(sentences) == text.strip()
    assert max(map(len, sentences)) <= LONGEST_SENTENCE


ODD = [
    "word ", "a. ", "“", "( ", '"a" ', "。", "“。", "!? ", "1. ( ?! A", "…", "U.S. ", "। ",
    "A. B. ", '"a" 。aU.S. 1. “。', "é", "x" * 399 + " ", "😀", "---",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("unit", ODD)
def test_the_work_of_cutting_grows_with_the_text_and_not_with_its_square(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done between everybody's audio."""
    segment, looked_at = text_module.sentencex.segment, 0

    def counting(language: str, text: str) -> list[str]:
        nonlocal looked_at
        looked_at += len(text)
        return list(segment(language, text))

    monkeypatch.setattr(text_module.sentencex, "segment", counting)
    text = (unit * 40_000)[:40_000]
    split_sentences(text)
    assert looked_at <= 120 * len(text)


# ChunkStream


def test_the_first_sentence_is_not_kept_waiting() -> None:
    cutter = TextChunker(20)
    assert cutter.push("One.") == ["One."]
    assert cutter.push("Two.") == cutter.push("Three three.") == []
    assert cutter.push("Four.") == ["Two. Three three."]
    assert cutter.push("Twenty characters, 2") == ["Four."]
    assert cutter.finish() == ["Twenty characters, 2"]
    assert cutter.finish() == []


def test_long_sentences_are_cut_after_clauses() -> None:
    assert cut(40, "It was late, and the quick brown fox (a tired one) jumped; then it slept.") == [
        "It was late, and the quick brown fox", "(a tired one) jumped; then it slept.",
    ]  # fmt: skip
    assert cut(12, "你好，世界、你好：世界；你好") == ["你好，世界、", "你好：世界；你好"]
    assert cut(16, "the time is 10:30 at 1,234") == ["the time is", "10:30 at 1,234"]


def test_cuts_are_even() -> None:
    words = "word " * 20
    assert [len(chunk) for chunk in cut(98, words)] == [49, 49], "not 94 and 4"
    assert cut(25, "this sentence is short, now") == ["this sentence", "is short, now"]


def test_words_are_cut_only_when_they_must_be() -> None:
    assert cut(10, "aaaaaaaaaa bb") == ["aaaaaaaaaa", "bb"]
    assert cut(10, "a" * 25) == ["a" * 8, "a" * 8, "a" * 9]
    syllable = "\u1100\u1161\u11a8"  # three letters of Korean, one character to a reader
    assert cut(7, syllable * 5) == [syllable * 2, syllable, syllable * 2]
    assert cut(3, "e\u0301" * 3) == ["e\u0301"] * 3
    assert cut(2, "e" + "\u0301" * 4) == ["e\u0301"]


@given(st.lists(ANY, max_size=6), st.integers(1, 120))
def test_chunks_hold_everything_and_keep_the_limit(sentences: list[str], limit: int) -> None:
    chunks = cut(limit, *sentences)
    assert all(0 < len(chunk) <= limit for chunk in chunks)
    assert all(chunk == chunk.strip() for chunk in chunks)
    assert letters("".join(chunks)) == letters("".join(sentences))
    assert all(map(has_word, chunks))
    assert cut(limit, *sentences) == chunks
