"""Plain words: whatever the rule lets pass, the grammars would have left as it is."""

import random
from importlib import resources

import pytest

from helpers.example import SENTENCES
from sheen.text.normalization import Part, TextNormalizer, describe, load_normalizer
from sheen.text.plain import PlainText, load_plain_text

TABLES = (
    "whitelist/tts.tsv", "whitelist/symbol.tsv", "roman/key_word.tsv", "roman/male.tsv",
    "address/state.tsv", "address/address_word.tsv", "date/month_name.tsv", "date/month_abbr.tsv",
    "measure/unit.tsv", "electronic/words.tsv", "electronic/cc_cues.tsv", "suppletive.tsv",
)  # fmt: skip
"""Of the library: words by which it decides what to replace, and what it replaces."""
COMMON = (
    "I", "A", "a", "the", "and", "in", "no", "may", "march", "second", "twenty", "three", "dot",
    "dollars", "half", "past", "noon", "am", "Mr", "it's", "don't", "o'clock", "I'll", "St", "st",
)  # fmt: skip


@pytest.fixture(scope="module")
def is_plain() -> PlainText:
    return load_plain_text()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("What should I do next?", True),
        ("A cat, I think; and so on!", True),
        ("hello there", True),
        ("regulating flow, pressure, etc.", False),
        ("radio or tv signals", False),
        ("Dr Smith", False),
        ("St Paul", False),
        ("half per gigahertz", False),
        ("part, I", False),
        ("Elizabeth I", False),
        ("World War I", False),
        ("he said 3", False),
        ("NASA", False),
        ("wait...", False),
        ("so - well", False),
        ("déjà vu", False),
        ("a  b", False),
        ("", False),
    ],
)
def test_what_the_grammars_may_change_is_not_plain(
    is_plain: PlainText, text: str, plain: bool
) -> None:
    assert is_plain(text) == plain


@pytest.mark.slow
def test_a_plain_text_is_its_own_spoken_form(is_plain: PlainText) -> None:
    data = resources.files("nemo_text_processing") / "text_normalization" / "en" / "data"
    drawn = random.Random(0)
    words = [
        drawn.choice(form.split())
        for table in TABLES
        for line in data.joinpath(table).read_text("utf-8").splitlines()
        for form in line.split("\t")
        if form.split()
    ]
    texts = SENTENCES.read_text("utf-8").splitlines()
    while len(texts) < 30_000:
        rare = drawn.choices(words, k=2) + drawn.choices(COMMON, k=3)
        texts.append(" ".join(drawn.sample(rare, 5)) + drawn.choice(("", ".", "?")))
    plain = [text for text in texts if len(text) <= 120 and is_plain(text)]
    chosen = plain[:40] + drawn.sample(plain[40:], 160)
    grammars = load_normalizer(describe("en"))._library
    assert [grammars.normalize(text) for text in chosen] == chosen


def test_the_grammars_are_not_asked_for_plain_words(is_plain: PlainText) -> None:
    class Grammars:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def normalize(self, text: str) -> str:
            self.asked.append(text)
            return text.upper()

    grammars = Grammars()
    normalizer = TextNormalizer("en", grammars, is_plain)
    assert normalizer.part(Part("Take the other one.")) == "Take the other one."
    assert normalizer.part(Part("Take 3.")) == "TAKE 3."
    assert grammars.asked == ["Take 3."]
