"""Error rates: hand-counted errors, what normalization makes equal, and honest intervals.

English: what is said alike is written alike, what is not stays apart.
"""

from typing import get_args

import numpy as np
import pytest

from helpers.word_pairs import HYPOTHESES, REFERENCES
from sheen.scoring.wer import (
    Unit,
    error_rate,
    normalize_english,
    normalize_words,
    wer_normalizer,
    word_error_difference,
)


def many(utterances: int, wrong_every: int) -> tuple[list[str], list[str]]:
    """Utterances of three words, every so many of them with one word wrong."""
    references = ["one two three"] * utterances
    return references, [
        "one nine three" if index % wrong_every == 0 else text
        for index, text in enumerate(references)
    ]


def test_word_errors_are_those_counted_by_hand() -> None:
    measured = error_rate("word", REFERENCES, HYPOTHESES)
    assert (measured.errors, measured.units, measured.utterances) == (6, 11, 5)
    assert measured.rate == pytest.approx(6 / 11)
    assert measured.low <= measured.rate <= measured.high


def test_character_errors_are_those_counted_by_hand() -> None:
    # "two" to "too" 1, "four five" to "four" 5, "six" to "six six" 4, none, "nine zero one" 13.
    measured = error_rate("character", REFERENCES, HYPOTHESES)
    assert (measured.errors, measured.units) == (23, 13 + 9 + 3 + 11 + 13)


def test_a_shift_is_one_deletion_and_one_insertion() -> None:
    assert error_rate("word", ["a b c d"], ["b c d e"]).errors == 2


def test_the_rate_weighs_words_not_utterances() -> None:
    measured = error_rate(
        "word", ["one two three four five", "six"], ["one two three four five", ""]
    )
    assert measured.rate == pytest.approx(1 / 6)


def test_more_heard_than_said_exceeds_one() -> None:
    assert error_rate("word", ["six"], ["six six six six"]).rate == 3.0


@pytest.mark.parametrize("unit", get_args(Unit))
def test_both_sides_are_normalized(unit: Unit) -> None:
    assert error_rate(unit, ["Don't stop -- now!"], ["  dont STOP,\tnow"]).errors == 0


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("  Four,\n two   SEVEN. ", "four two seven"),
        ("twenty-one", "twenty one"),
        ("it\u2019s John's", "its johns"),
        ("Straße", "strasse"),
        ("cafe\u0301", "caf\u00e9"),
        ("\uff15 \u2460", "5 1"),
        ("\u4f60\u597d\u3002", "\u4f60\u597d"),
        ("532", "532"),
        ("...", ""),
    ],
)
def test_words_are_normalized_once_and_for_all(text: str, normalized: str) -> None:
    assert normalize_words(text) == normalized
    assert normalize_words(normalized) == normalized


def test_the_interval_covers_what_new_samples_give() -> None:
    """Of intervals from samples of a known rate, about 95% must hold it."""
    rng = np.random.default_rng(5)
    share, covered = 0.3, 0
    for trial in range(60):
        wrong = rng.random(60) < share
        hypotheses = ["two" if is_wrong else "one" for is_wrong in wrong]
        measured = error_rate("word", ["one"] * 60, hypotheses, seed=trial, resamples=300)
        covered += measured.low <= share <= measured.high
    assert 51 <= covered <= 60


def test_the_interval_is_a_function_of_the_seed() -> None:
    references, hypotheses = many(40, wrong_every=4)
    first = error_rate("word", references, hypotheses, seed=1)
    assert error_rate("word", references, hypotheses, seed=1) == first
    others = [error_rate("word", references, hypotheses, seed=seed) for seed in range(2, 6)]
    assert any((other.low, other.high) != (first.low, first.high) for other in others)
    assert {other.rate for other in others} == {first.rate}


def test_fewer_utterances_widen_the_interval() -> None:
    small, large = (error_rate("word", *many(count, wrong_every=4)) for count in (20, 320))
    assert small.rate == large.rate
    assert small.low < large.low < large.rate < large.high < small.high
    # Sixteen times the utterances: a quarter of the width.
    assert (small.high - small.low) / (large.high - large.low) == pytest.approx(4, rel=0.3)


def test_the_same_hypotheses_do_not_differ() -> None:
    same = word_error_difference(REFERENCES, HYPOTHESES, HYPOTHESES)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_the_difference_is_b_less_a() -> None:
    worse = word_error_difference(REFERENCES, REFERENCES, HYPOTHESES)
    assert worse.difference == pytest.approx(6 / 11)
    better = word_error_difference(REFERENCES, HYPOTHESES, REFERENCES)
    assert better.difference == -worse.difference
    assert (better.low, better.high) == pytest.approx((-worse.high, -worse.low))
    assert worse.utterances == 5


def test_pairing_tells_apart_what_two_rates_do_not() -> None:
    """b makes the errors of a and a few more: hidden between texts, plain on the same texts."""
    references, a = many(60, wrong_every=2)
    b = ["one nine nine" if index < 8 else text for index, text in enumerate(a)]
    difference = word_error_difference(references, a, b)
    assert difference.low > 0
    assert error_rate("word", references, a).high > error_rate("word", references, b).low


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        (["one", "two"], ["one"], "2 references and 1 hypotheses"),
        ([], [], "no references"),
        (["one", " ?!"], ["one", "two"], r"reference 1 holds no words: ' \?!'"),
    ],
)
def test_lists_that_cannot_be_compared_are_refused(
    references: list[str], hypotheses: list[str], message: str
) -> None:
    for unit in get_args(Unit):
        with pytest.raises(ValueError, match=message):
            error_rate(unit, references, hypotheses)
    with pytest.raises(ValueError, match=message):
        word_error_difference(references, references, hypotheses)
    if hypotheses:
        with pytest.raises(ValueError, match=message):
            word_error_difference(references, hypotheses, references)


@pytest.mark.parametrize(
    ("spoken", "written"),
    [
        ("four hours", "4 hours"),
        ("Three thousand four hundred people.", "3,400 people"),
        ("nineteen eighty four", "1984"),
        ("two thousand and five", "2005"),
        ("the twenty first of May", "the 21st of May"),
        ("zero point five percent", "0.5%"),
        ("twenty four dollars and ninety nine cents", "$24.99"),
        ("five dollars twenty cents", "$5.20"),
        ("fourteen pounds", "£14"),
        ("fourteen pounds", "£ 14"),
        ("twenty euros and five percent", "20 € and 5 %"),
        ("twenty euros, five percent more", "20\u00a0€, 5\u202f% more"),
        ("three thousand euros", "3,000€"),
        ("Five million euros.", "5 Million €."),
        ("two pounds fifty", "2 £ 50"),
        ("five at two pounds", "5 at £2"),
        ("one point two million dollars", "$1,200,000"),
        ("at five thirty p m", "at 5:30 p.m."),
        ("at five thirty PM.", "at 5.30 pm"),
        ("at five thirty", "at 5:30"),
        ("at five in the morning", "at 5:00 in the morning"),
        ("five thirty pm", "5:30PM"),
        ("the colour grey, realised", "The color gray realized"),
        ("It doesn't; they've gone, you're right.", "it does not they have gone you are right"),
        ("Doctor Smith and missus Bell", "Dr. Smith and Mrs. Bell"),
        ("a naïve, well-known fact", "A naive well known fact"),
    ],
)
def test_two_ways_to_write_the_same_words_are_equal(spoken: str, written: str) -> None:
    assert normalize_english(spoken) == normalize_english(written)


@pytest.mark.parametrize(
    ("reference", "transcript"),
    [
        ("twenty four dollars", "24"),
        ("twenty percent", "20"),
        ("20 %", "20"),
        ("20 €", "20"),
        ("20 €", "20 $"),
        ("twenty four dollars", "24 pounds"),
        ("five thirty", "5:31"),
        ("the well (an old one) is dry", "the well is dry"),
        ("he left", "he left [music]"),
    ],
)
def test_other_words_are_errors(reference: str, transcript: str) -> None:
    sides = [[normalize_english(text)] for text in (reference, transcript)]
    assert error_rate("word", *sides).errors > 0


def test_normalized_words_survive_the_comparison_as_they_are() -> None:
    text = normalize_english("At 5:30 p.m. it's $24.99, 20% off: O'Neil's (old) café.")
    assert normalize_words(text) == text


@pytest.mark.parametrize("text", ["Um.", "Hmm, uh...", "Um $.", "Mm, €!"])
def test_a_text_of_fillers_alone_keeps_its_words(text: str) -> None:
    assert normalize_words(normalize_english(text)) == normalize_words(text)


@pytest.mark.parametrize("text", ["", "..."])
def test_a_text_without_words_stays_empty_when_normalized(text: str) -> None:
    assert normalize_words(normalize_english(text)) == ""


def test_only_english_of_faster_whisper_is_rewritten() -> None:
    assert wer_normalizer("base", "en") is normalize_english
    for asr, language in (("base", "de"), ("base", None), ("owner/name", "en"), (None, "en")):
        assert wer_normalizer(asr, language)("Four o'clock") == "Four o'clock"
