"""The spoken form of texts, and the record of what made it, from encoding to a voice.

The English grammars are compiled once on a machine, in some 20 s.
"""

import importlib.metadata
import random
import subprocess
import sys
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pytest

from helpers.example import ROOT, SENTENCES, VOICE, load_script
from sheen.codec.layout import TokenLayout
from sheen.data.corpus import MANIFEST_SCHEMA
from sheen.encode.config import RecordingLimits
from sheen.encode.stages import DecodeSettings, decode_rows
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice
from sheen.text import normalization
from sheen.text.normalization import (
    LANGUAGES,
    NemoStep,
    Part,
    PlainText,
    TextNormalizer,
    check,
    describe,
    language_code,
    load_normalizer,
    load_plain_text,
)
from sheen.text.segmentation import split_sentences

SILENT_CODES = [[1] * 12, [1] * 24, [1] * 48]  # a second of what a codec says

encode = load_script(ROOT / "jobs" / "encode.py").main


@pytest.fixture(scope="module")
def english() -> TextNormalizer:
    return load_normalizer(describe("en"))


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("It costs $5.20.", "It costs five dollars twenty cents."),
        ("1,234 people", "one thousand two hundred and thirty four people"),
        ("on 3/4/2024", "on march fourth twenty twenty four"),
        ("at 10:30 a.m.", "at ten thirty AM"),
        ("Dr. Doe, 42 Main St.", "doctor Doe, forty two Main Street"),
        ("-3.5 km, 50%", "minus three point five kilometers, fifty percent"),
        ("call [25] \\ now", "call [twenty five]\\ now"),
        ("  two \n words\t", "two words"),
        ("I paid $1. You paid 2!", "I paid one dollar. You paid two!"),
    ],
)
def test_what_is_written_becomes_what_is_spoken(
    english: TextNormalizer, written: str, spoken: str
) -> None:
    assert english(written) == spoken


@pytest.mark.parametrize(
    "text", ["four two seven", "Don't stop, naïve café!", "“So — what?” she said.", "你好 [x] 😀"]
)
def test_plain_words_stay(english: TextNormalizer, text: str) -> None:
    assert english(text).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", " \n", "...", "--- !"])
def test_what_says_nothing_is_empty(english: TextNormalizer, text: str) -> None:
    assert english(text) == ""


def test_a_text_is_read_as_its_sentences_are(english: TextNormalizer) -> None:
    """Serving normalizes sentence by sentence, encoding a whole text."""
    text = "On 3/4/2024 I paid $5. Was it 10:30? It was (at No. 5).\nYes: 2nd St."
    sentences = split_sentences(text, "en")
    assert len(sentences) == 4
    assert english(text) == " ".join(map(english, sentences))


@pytest.mark.slow
def test_the_library_says_nothing(english: TextNormalizer) -> None:
    """It logs what it reads, and how it starts, which a command's output is not for."""
    code = "from sheen.text.normalization import *\nprint(load_normalizer(describe('en'))('5'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("five\n", "")


@pytest.mark.slow
def test_core_does_not_load_it_for_nothing() -> None:
    code = "import sys, sheen.data.dataset; sys.exit('pynini' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What cannot be had


def test_an_unknown_language_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown language 'tlh'; known: de, en, es"):
        describe("tlh")


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_language_goes_by_its_codes_and_names(code: str) -> None:
    for name in (code, *LANGUAGES[code]):
        for written in (name, name.upper(), f" {name}", f"{name}-XX", f"{name}_XX.UTF-8"):
            assert language_code(written) == code
    assert describe(LANGUAGES[code][-1].title()).language == code


def test_no_two_languages_share_a_name() -> None:
    names = [name for code, names in LANGUAGES.items() for name in (code, *names)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("asked", ["tlh", "Klingon", "engine", "", " ", "7", "-en"])
def test_what_is_no_language_of_ours_is_none(asked: str) -> None:
    assert language_code(asked) not in LANGUAGES


def test_another_version_is_refused_by_name() -> None:
    installed = describe("en").version
    other = NemoStep(version="0.9", language="en")
    with pytest.raises(ValueError, match=rf"nemo_text_processing 0\.9, but {installed} is"):
        check(other)


def test_a_missing_library_says_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    info = describe("en")

    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    for attempt in (lambda: describe("en"), lambda: check(info)):
        with pytest.raises(ValueError, match=r"not installed.*Linux on x86-64"):
            attempt()


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot keep the compiled grammars.*XDG_CACHE_HOME"):
        load_normalizer.__wrapped__(describe("en"))


def test_of_two_that_compile_at_once_one_is_kept(tmp_path: Path) -> None:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "grammar.far").write_text(name)
    (tmp_path / "theirs").rename(tmp_path / "en")
    normalization._publish(tmp_path / "mine", tmp_path / "en")
    assert (tmp_path / "en" / "grammar.far").read_text() == "theirs"
    with pytest.raises(OSError, match="nowhere"):
        normalization._publish(tmp_path / "mine", tmp_path / "nowhere" / "en")


# On its way


def test_a_text_counts_as_it_is_spoken(english: TextNormalizer) -> None:
    """At 30 characters per second and more it is refused: written it is not, spoken it is."""
    row: dict[str, Any] = dict.fromkeys(MANIFEST_SCHEMA.names) | {
        "key": 0, "id": "a", "text": "$1,234,567", "source": "line 1", "snac_codes": SILENT_CODES,
    }  # fmt: skip
    table = pa.Table.from_pylist([row], schema=MANIFEST_SCHEMA)
    layout = TokenLayout(0, 4096, (4, 2, 1))
    preparation = DecodeSettings(24_000, RecordingLimits(max_text_rate=30), layout, 2048 / 24_000)
    (as_it_is,) = decode_rows(table, preparation).to_pylist()
    assert (as_it_is["text"], as_it_is["reason"]) == ("$1,234,567", None)
    (spoken,) = decode_rows(table, replace(preparation, normalizer=(describe("en"),))).to_pylist()
    assert spoken["text"].endswith(" hundred and sixty seven dollars")
    assert spoken["reason"] == "implausible speech rate"


def test_a_voice_speaks_what_it_was_taught(english: TextNormalizer, voice: Voice) -> None:
    assert voice.model_input(" at  10:30\n") == "at 10:30"
    info = voice.info.model_copy(update={"normalizer": (describe("en"),)})
    taught = replace(voice, info=info)
    assert taught.model_input(" at  10:30\n") == "at ten thirty"
    (one, other) = (
        taught.request(text, VOICE, Sampling(), 3.0)
        for text in (taught.model_input("10:30"), "ten thirty")
    )
    assert one.prompt == other.prompt


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
