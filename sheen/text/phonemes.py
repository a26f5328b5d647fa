"""Phonemes: words as they are spoken -> their sounds, "of the use" -> "ʌv ðə jus" and stress.

Owns the library that does it, the alphabet of what comes out, and the record of both that a dataset
and a checkpoint carry. Refuses a version of the library other than the recorded one, and languages
without phonemes. Takes words, not numbers: text normalization comes first.

The alphabet is misaki's for American English, which Kokoro was taught: a character is a phoneme, a
mark of stress stands before its vowel, punctuation stays as the pauses that it means, and there is
one space between two words. The library, hibari-tts, has misaki's lexicon and rules, a tagger for
words of several readings, and a small network for words that no lexicon has. It needs neither
espeak nor a download (decision 0028).
"""

import importlib.metadata
import threading
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Literal

import regex
from pydantic import BaseModel

from sheen.text.normalization import spell_digits
from sheen.text.prompt import normalize

LIBRARY = "hibari-tts"
LANGUAGES = ("en",)

VOWELS = "AIOWYiuæɐɑɔəɛɜɪʊʌᵊᵻ"
PHONES = f"Tbdfhjklmnpstvwzðŋɡɹʃʒʤʧθ{VOWELS}"
STRESS = "ˈˌ"
PAUSES = ';:,.!?—…"()“”'
ALPHABET = frozenset(f"{PHONES}{STRESS}{PAUSES} ")
"""Nothing else comes out. What has no phonemes, such as the letters of another script, is left
out."""

IPA = (
    *(("t͡ʃ", "ʧ"), ("tʃ", "ʧ"), ("d͡ʒ", "ʤ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W")),
    *(("ɔɪ", "Y"), ("oʊ", "O"), ("əʊ", "O"), ("ɝ", "ɜɹ"), ("ɚ", "əɹ"), ("r", "ɹ"), ("g", "ɡ")),
    *(("ɾ", "T"), ("ɫ", "l"), ("e", "ɛ"), ("ː", ""), (".", ""), ("͡", ""), ("‿", "")),
)
"""What the International Phonetic Alphabet writes otherwise, the longest first: the alphabet has
one letter for each affricate and diphthong (misaki's EN_PHONES.md), and no length."""

_PHONE = frozenset(PHONES)
_LINK = regex.compile(r"\](?=\()")
"""`[word](/phonemes/)` is the library's markup; in a text it is brackets."""
_STOP = regex.compile(r" +(?=[;:,.!?…)”])")


class PhonemeStep(BaseModel, extra="forbid", frozen=True):
    """Spoken words to phonemes."""

    name: Literal["phonemes"] = "phonemes"
    library: Literal["hibari-tts"] = "hibari-tts"
    version: str
    """Of the library: its lexicon changes with it."""
    language: str
    alphabet: Literal["misaki-us-1"] = "misaki-us-1"
    """ALPHABET; another one means a new version."""


def describe(language: str) -> PhonemeStep:
    """The step that is installed here, for a language of LANGUAGES. Raises ValueError."""
    step = PhonemeStep(version=_installed(language), language=language)
    check(step)
    return step


def check(step: PhonemeStep) -> None:
    """Raise ValueError unless `load_phonemizer` can load this here; quick, loads nothing."""
    if step.language not in LANGUAGES:
        raise ValueError(
            f"phonemes: unknown language {step.language!r}; known: {', '.join(LANGUAGES)}"
        )
    if (installed := _installed(step.language)) != step.version:
        raise ValueError(
            f"phonemes: the texts were read by {LIBRARY} {step.version}, here is {installed}, "
            f"which may read them otherwise. Type: pip install {LIBRARY}=={step.version}; or "
            f"encode and train again with {installed}"
        )


def _installed(language: str) -> str:
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"phonemes ({language}): {LIBRARY} is not installed. Type: "
            "pip install 'sheen[phonemes]'"
        ) from None


def from_ipa(given: str) -> str:
    """Phonemes of English in IPA, or of the alphabet itself, as the alphabet writes them. Raises
    ValueError, which names the character that it has none for."""
    read = normalize(given)
    for written, own in IPA:
        read = read.replace(written, own)
    allowed = _PHONE.union(STRESS, " ")
    if unknown := next((c for c in read if c not in allowed), None):
        raise ValueError(f"/{given}/: the model knows no phoneme {unknown!r}; known: {PHONES}")
    if _PHONE.isdisjoint(read):
        raise ValueError(f"/{given}/ has no phoneme")
    return normalize(read)


def pauses_of(text: str) -> str:
    """What stays of a text without a word: its punctuation and white space."""
    return "".join(c if c in PAUSES else " " if c.isspace() else "" for c in text)


class Phonemizer:
    """Call it with a sentence's words for its phonemes, see `load_phonemizer`. Threads take turns:
    it computes in Python."""

    def __init__(self, library: Callable[[str], str]) -> None:
        """library: a G2P of hibari."""
        self._library = library
        self._lock = threading.Lock()

    def __call__(self, words: str) -> str:
        """Of ALPHABET; empty for words without a sound."""
        with self._lock:
            read = self._library(_readable(words))
        kept = "".join(character for character in read if character in ALPHABET)
        if _PHONE.isdisjoint(kept):
            return ""
        joined: str = _STOP.sub("", normalize(kept))
        return joined


def _readable(words: str) -> str:
    """Without what the library raises errors of, and what it takes for markup.

    A digit that text normalization left is a word.
    """
    words = _LINK.sub("] ", words).replace("İ", "I")  # in lower case İ is two characters
    if not any(map(str.isdigit, words)):
        return words
    decimal = "".join(
        unicodedata.normalize("NFKC", character) if character.isdigit() else character
        for character in words
    )
    kept = "".join(c for c in decimal if c.isdecimal() or not c.isdigit())
    return spell_digits(kept, "en")


@cache
def load_phonemizer(step: PhonemeStep) -> Phonemizer:
    """One for each process; loads in less than a second. ValueError says what is missing, see
    `check`."""
    check(step)
    # Here: most processes do without it, and it imports scipy where that is installed.
    from hibari.g2p import G2P

    library = G2P()
    assert library.oov is not None  # loads the network for unknown words, now rather than later
    return Phonemizer(library)
