"""Phonemes of words, and that nothing but the alphabet comes out."""

import importlib.metadata
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sheen.text import phonemes
from sheen.text.phonemes import (
    ALPHABET,
    PhonemeStep,
    Phonemizer,
    check,
    describe,
    load_phonemizer,
)
from sheen.text.prompt import normalize

SENTENCES = (
    "I read it yesterday, and I will read it again tomorrow.",
    "The quick brown fox jumps over the lazy dog!",
    "Zorvex and Quillibrand met Doctor Hashimoto in Llanfair.",
    "“So — what?” she said (twice); the NASA people laughed...",
    "naïve café, don't, mother-in-law, U.S.A.",
)


@pytest.fixture(scope="module")
def english() -> Phonemizer:
    return load_phonemizer(describe("en"))


@pytest.mark.parametrize(
    ("words", "sounds"),
    [
        ("Hello there.", "həlˈO ðˈɛɹ."),
        ("five dollars twenty cents", "fˈIv dˈɑləɹz twˈɛnti sˈɛnts"),
        ("Wait, what?", "wˈAt, wˌʌt?"),
        ("  two \n words\t", "tˈu wˈɜɹdz"),
    ],
)
def test_words_become_phonemes_with_stress_and_pauses(
    english: Phonemizer, words: str, sounds: str
) -> None:
    assert english(words) == sounds


def test_a_words_sound_depends_on_its_sentence(english: Phonemizer) -> None:
    assert "ɹˈɛd" in english("I have read it.")
    assert "ɹˈid" in english("I will read it.")
    assert english("the apple").startswith("ði ")
    assert english("the pear").startswith("ðə ")


def test_a_word_that_no_lexicon_has_is_read(english: Phonemizer) -> None:
    assert len(english("Zorvex").strip("ˈˌ")) >= 5


@pytest.mark.parametrize("text", ["", " ", "...", "— , !", "“”", "你好", "😀 ✓", "()"])
def test_what_has_no_sound_is_empty(english: Phonemizer, text: str) -> None:
    assert english(text) == ""


@pytest.mark.parametrize(
    ("left", "words"),
    [("B2B", "B two B"), ("x²", "x two"), ("④", "four"), ("9" * 80, "nine " * 80)],
)
def test_a_digit_that_text_normalization_left_is_a_word(
    english: Phonemizer, left: str, words: str
) -> None:
    assert english(left) == english(words)


def test_letters_of_other_scripts_leave_no_gap(english: Phonemizer) -> None:
    assert english("Hello 你好, there.") == "həlˈO, ðˈɛɹ."


def test_the_librarys_markup_in_a_text_is_brackets(english: Phonemizer) -> None:
    assert "nəʊ" in english._library("See [this](/nəʊ/) now.")
    assert "nəʊ" not in english("See [this](/nəʊ/) now.")


@given(st.text(max_size=60))
@example("¹A፩ [x](/y/) -1.5.2 $3,00 <İ`")
def test_nothing_but_the_alphabet_comes_out(text: str) -> None:
    read = load_phonemizer(describe("en"))(text)
    assert set(read) <= ALPHABET
    assert read == normalize(read), "one space between words, none at the ends, NFC"


@pytest.mark.slow
def test_the_alphabet_is_what_the_library_was_made_for() -> None:
    """A phoneme that is missing in it would vanish from every text."""
    from hibari.g2p import G2P, _load_json

    vocabulary = set(_load_json("vocab.json"))
    assert vocabulary >= ALPHABET
    lost: dict[str, int] = {}
    lexicon = G2P().lexicon
    for entries in (lexicon.golds.d, lexicon.silvers.d):
        for read in entries.values():
            for sounds in read.values() if isinstance(read, dict) else [read]:
                for character in set(sounds or "") - ALPHABET - set("ɾʔ"):
                    lost[character] = lost.get(character, 0) + 1
    assert lost == {}


@pytest.mark.slow
def test_a_text_has_the_same_phonemes_in_any_process(english: Phonemizer) -> None:
    code = (
        "import json, sys\nfrom sheen.text.phonemes import *\n"
        "read = load_phonemizer(describe('en'))\n"
        "print(json.dumps([read(text) for text in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(SENTENCES),
        env=os.environ | {"PYTHONHASHSEED": "1"},  # this process has another
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == [english(text) for text in SENTENCES]
    assert done.stderr == ""


def test_threads_may_share_it(english: Phonemizer) -> None:
    expected = [english(text) for text in SENTENCES]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(english, SENTENCES)) == expected


def test_nobody_loads_it_for_nothing() -> None:
    code = "import sys, sheen.text.steps; sys.exit('hibari' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What cannot be had


def test_an_unknown_language_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown language 'de'; known: en"):
        describe("de")


def test_another_version_is_refused_by_name() -> None:
    installed = describe("en").version
    with pytest.raises(ValueError, match=rf"hibari-tts 9\.9, but {installed} .*hibari-tts==9"):
        check(PhonemeStep(version="9.9", language="en"))


def test_a_missing_package_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    step = describe("en")

    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(phonemes.importlib.metadata, "version", missing)
    for attempt in (lambda: describe("en"), lambda: check(step)):
        with pytest.raises(ValueError, match=r"hibari-tts is not installed.*'sheen\[phonemes\]'"):
            attempt()
