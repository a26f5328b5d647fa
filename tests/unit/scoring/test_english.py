"""English as WER compares it: what is said alike is written alike, what is not stays apart."""

import pytest

from sheen.scoring.english import normalise_english, wer_normaliser
from sheen.scoring.wer import error_rate, normalise_words


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
    assert normalise_english(spoken) == normalise_english(written)


@pytest.mark.parametrize(
    ("reference", "transcript"),
    [
        ("twenty four dollars", "24"),
        ("twenty percent", "20"),
        ("twenty four dollars", "24 pounds"),
        ("five thirty", "5:31"),
        ("the well (an old one) is dry", "the well is dry"),
        ("he left", "he left [music]"),
    ],
)
def test_other_words_are_errors(reference: str, transcript: str) -> None:
    sides = [[normalise_english(text)] for text in (reference, transcript)]
    assert error_rate("word", *sides).errors > 0


def test_its_words_survive_the_comparison_as_they_are() -> None:
    text = normalise_english("At 5:30 p.m. it's $24.99, 20% off: O'Neil's (old) café.")
    assert normalise_words(text) == text


@pytest.mark.parametrize("text", ["Um.", "Hmm, uh..."])
def test_a_text_of_fillers_alone_keeps_its_words(text: str) -> None:
    assert normalise_words(normalise_english(text)) == normalise_words(text)


@pytest.mark.parametrize("text", ["", "..."])
def test_nothing_stays_nothing(text: str) -> None:
    assert normalise_words(normalise_english(text)) == ""


def test_only_english_of_faster_whisper_is_rewritten() -> None:
    assert wer_normaliser("base", "en") is normalise_english
    for asr, language in (("base", "de"), ("base", None), ("pocketsphinx", "en"), (None, "en")):
        assert wer_normaliser(asr, language)("Four o'clock") == "Four o'clock"
