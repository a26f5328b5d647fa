"""Phonemes: spoken words -> phonemes with stress, "of the use" -> "ʌv ðə jus".

Owns the library, its output alphabet, and the record of both in datasets and checkpoints. Refuses a
version of the library other than the recorded one, and languages without phonemes. Takes words, not
numbers: text normalization comes first.

The alphabet is misaki's for American English, as used by Kokoro: one character per phoneme, stress
marks before vowels, punctuation kept for pauses, and one space between words. The library,
hibari-tts, has misaki's lexicon and rules, a tagger for words with several pronunciations, and a
small network for unknown words. It needs neither espeak nor a download (decision 0028).
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
"""All output characters. Text without phonemes, such as another script, is skipped."""

IPA = (
    *(("t͡ʃ", "ʧ"), ("tʃ", "ʧ"), ("d͡ʒ", "ʤ"), ("dʒ", "ʤ"), ("eɪ", "A"), ("aɪ", "I"), ("aʊ", "W")),
    *(("ɔɪ", "Y"), ("oʊ", "O"), ("əʊ", "O"), ("ɝ", "ɜɹ"), ("ɚ", "əɹ"), ("r", "ɹ"), ("g", "ɡ")),
    *(("ɾ", "T"), ("ɫ", "l"), ("e", "ɛ"), ("ː", ""), (".", ""), ("͡", ""), ("‿", "")),
)
"""IPA and the alphabet's own symbols where they differ, longest first: the alphabet has a single
letter for each affricate and diphthong (misaki's EN_PHONES.md), and no length marks."""

_PHONE = frozenset(PHONES)
_LINK = regex.compile(r"\](?=\()")
"""Matches the library's markup `[word](/phonemes/)`, which in a text is plain brackets."""
_STOP = regex.compile(r" +(?=[;:,.!?…)”])")


class PhonemeStep(BaseModel, extra="forbid", frozen=True):
    """Spoken words to phonemes."""

    name: Literal["phonemes"] = "phonemes"
    library: Literal["hibari-tts"] = "hibari-tts"
    version: str
    """Version of the library, with which its lexicon changes."""
    language: str
    alphabet: Literal["misaki-us-1"] = "misaki-us-1"
    """Version of ALPHABET."""


def describe(language: str) -> PhonemeStep:
    """The step with the installed library, for a language of LANGUAGES. Raises ValueError."""
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
            f"phonemes: the texts were converted by {LIBRARY} {step.version}, but {installed} is "
            f"installed, whose results may differ. Run pip install {LIBRARY}=={step.version}, or "
            f"encode and train again with {installed}"
        )


def _installed(language: str) -> str:
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"phonemes ({language}): {LIBRARY} is not installed. Run pip install 'sheen[phonemes]'"
        ) from None


def from_ipa(given: str) -> str:
    """English phonemes in IPA, or in the alphabet itself, converted to the alphabet. Raises
    ValueError naming an unknown character."""
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
    """The punctuation and white space of a text without a word."""
    return "".join(c if c in PAUSES else " " if c.isspace() else "" for c in text)


class Phonemizer:
    """Called with the words of a sentence, returns its phonemes; see `load_phonemizer`. Threads
    take turns."""

    def __init__(self, library: Callable[[str], str]) -> None:
        """library: a G2P of hibari."""
        self._library = library
        self._lock = threading.Lock()

    def __call__(self, words: str) -> str:
        """Phonemes of ALPHABET; empty for words without a phoneme."""
        with self._lock:
            read = self._library(_readable(words))
        kept = "".join(character for character in read if character in ALPHABET)
        if _PHONE.isdisjoint(kept):
            return ""
        joined: str = _STOP.sub("", normalize(kept))
        return joined


def _readable(words: str) -> str:
    """Words without characters on which the library fails, and without its markup.

    Remaining digits are read as words.
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
    """The phonemizer, one per process; loads in less than a second. Raises ValueError, see
    `check`."""
    check(step)
    # Imported here: most processes do not need it, and it imports scipy if that is installed.
    from hibari.g2p import G2P

    library = G2P()
    assert library.oov is not None  # loads the network for unknown words, now rather than later
    return Phonemizer(library)
