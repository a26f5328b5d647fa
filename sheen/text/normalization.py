"""Text normalization: written text -> spoken words, "$5.20" -> "five dollars twenty cents".

Owns the library that does it, its compiled grammars, and the record of both that a dataset and a
checkpoint carry, so that a model gets texts in the form that it was trained on. Refuses a version
of the library other than the recorded one, and languages without grammars.

Texts are normalized sentence by sentence, and sentences in parts of bounded work. The rule looks at
the text alone, so a text has the same spoken form in encoding and in serving, on a busy machine and
on an idle one. The bound is needed because the grammars follow every reading of every digit and
sign: one costs as much as ten letters, and a row of numbers of 1,000 characters takes 3 to 20
seconds (decision 0020).
"""

import importlib.metadata
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import regex
from pydantic import BaseModel

from sheen.text.plain import PlainText, load_plain_text
from sheen.text.prompt import normalize
from sheen.text.segmentation import split_sentences

PARTS_VERSION: Literal["parts-1"] = "parts-1"
"""Recorded with every dataset and checkpoint; other bounds or another rule mean a new version."""
LONGEST_PART = 120
"""Characters."""
MOST_SIGNS = 40
"""Digits and signs of a part: what is neither letter nor white space. A date, a time and two
telephone numbers have as many."""

DIGITS = {
    "de": "null eins zwei drei vier fünf sechs sieben acht neun",
    "en": "zero one two three four five six seven eight nine",
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve",
    "fr": "zéro un deux trois quatre cinq six sept huit neuf",
    "hu": "nulla egy kettő három négy öt hat hét nyolc kilenc",
    "it": "zero uno due tre quattro cinque sei sette otto nove",
    "sv": "noll ett två tre fyra fem sex sju åtta nio",
}

_SEAM = regex.compile(r"(?<=(?<![^\s])[\p{Ll}\p{M}]++[,;:]?) (?=[\p{Ll}\p{M}]+[,;:.!?]*(?:\s|$))")
"""Between two words of small letters, where no number, unit, date or abbreviation goes on."""
_SIGN = regex.compile(r"[^\p{L}\p{M}\s]")
_LETTER = regex.compile(r"\p{L}")
_DIGIT = re.compile(r"\d")  # not of `regex`: it knows digits of a Unicode that `int` does not
_STOPS = regex.compile(r" (?=[,.;:!?)\]}])")


@dataclass(frozen=True)
class Part:
    """What is normalized at once. One that is `spelled` is not normalized, see `spell_digits`."""

    text: str
    spelled: bool = False

    @property
    def work(self) -> int:
        """In letters: a digit or a sign is as much as ten."""
        return len(self.text) + 9 * _signs(self.text)


def parts(sentence: str) -> Iterator[Part]:
    """A sentence, without runs of white space, as parts that joined by spaces are the sentence.

    It is cut between words of small letters, each part as long as it may be. What goes on for too
    long without such a place is a table, and spelled, where it has more digits and signs than
    letters; else it is cut between any words. A word that is too long by itself is spelled.
    """
    packed = ""
    for run in _SEAM.split(sentence):
        if _fits(together := f"{packed} {run}" if packed else run):
            packed = together
            continue
        if packed:
            yield Part(packed)
        packed = ""
        if _fits(run):
            packed = run
        elif (signs := _signs(run)) > MOST_SIGNS and signs > len(_LETTER.findall(run)):
            yield Part(run, spelled=True)
        else:
            yield from _between_words(run)
    if packed:
        yield Part(packed)


def spell_digits(text: str, language: str) -> str:
    """What the library is not given, as it is read: each digit a word, all else as written."""
    words = DIGITS[language].split()
    spelled = _DIGIT.sub(lambda digit: f" {words[int(digit[0])]} ", text)
    joined: str = _STOPS.sub("", " ".join(spelled.split()))
    return joined


def _signs(text: str) -> int:
    return len(_SIGN.findall(text))


def _fits(text: str) -> bool:
    return len(text) <= LONGEST_PART and _signs(text) <= MOST_SIGNS


def _between_words(text: str) -> Iterator[Part]:
    packed = ""
    for word in text.split(" "):
        if _fits(together := f"{packed} {word}" if packed else word):
            packed = together
            continue
        if packed:
            yield Part(packed)
        packed = word if _fits(word) else ""
        if not packed:
            yield Part(word, spelled=True)
    if packed:
        yield Part(packed)


LIBRARY: Literal["nemo_text_processing"] = "nemo_text_processing"
LANGUAGES = {
    "de": ("deu", "ger", "german", "deutsch"),
    "en": ("eng", "english"),
    "es": ("spa", "spanish", "español", "castilian"),
    "fr": ("fra", "fre", "french", "français"),
    "hu": ("hun", "hungarian", "magyar"),
    "it": ("ita", "italian", "italiano"),
    "sv": ("swe", "swedish", "svenska"),
}
"""ISO 639-1, and what else each is called: ISO 639-2 and names. Those of the library's whose
grammars get through any text, see decision 0020."""
_SYNTAX = re.compile(r"[\[\]\\]")


def language_code(asked: str) -> str:
    """The code of LANGUAGES that a code or a name means (`en-US`, `eng`, `English (US)`), by its
    first word; for any other language that word, in lower case."""
    word = re.match(r"[^\W\d_]*", asked.strip().casefold())
    assert word is not None  # it may be empty
    names = {name: code for code, names in LANGUAGES.items() for name in names}
    return names.get(word[0], word[0])


class NemoStep(BaseModel, extra="forbid", frozen=True):
    """Written text to the words that are spoken."""

    name: Literal["nemo_text_processing"] = LIBRARY
    version: str
    """Of the library: its grammars change with it."""
    language: str
    segmentation: Literal["sentences", "parts-1"] = "sentences"
    """What the library was given at once: PARTS_VERSION; before there was one, whole sentences.
    These are now read in parts too, which changes words where a sentence holds a long row of
    numbers."""


def describe(language: str) -> NemoStep:
    """The normalization that is installed here, for a language of LANGUAGES or its name. Raises
    ValueError."""
    language = language_code(language)
    info = NemoStep(version=_installed(language), language=language, segmentation=PARTS_VERSION)
    check(info)
    return info


def check(info: NemoStep) -> None:
    """Raise ValueError unless `load_normalizer` can load this here; quick, loads nothing."""
    if info.language not in LANGUAGES:
        raise ValueError(
            f"text normalization: unknown language {info.language!r}; known: {', '.join(LANGUAGES)}"
        )
    if (installed := _installed(info.language)) != info.version:
        raise ValueError(
            f"text normalization: the texts were normalized by {LIBRARY} {info.version}, here is "
            f"{installed}, which may read them otherwise. Install {info.version}, or encode and "
            f"train again with {installed}"
        )


def _installed(language: str) -> str:
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"text normalization ({language}): {LIBRARY} is not installed. Sheen brings it on "
            "Linux on x86-64, where alone its grammars can be compiled; use such a machine, or a "
            "model that was taught texts as they are"
        ) from None


class TextNormalizer:
    """Call it with a text for its spoken form, see `load_normalizer`. Threads take turns."""

    def __init__(
        self, language: str, library: Any, is_plain: PlainText = lambda text: False
    ) -> None:
        """library: the Normalizer of nemo_text_processing, which is not asked for plain texts."""
        self._language = language
        self._library = library
        self._is_plain = is_plain
        self._lock = threading.Lock()

    def __call__(self, text: str) -> str:
        """Empty for a text without a word."""
        return join_parts(map(self.sentence, split_sentences(text, self._language)))

    def sentence(self, sentence: str) -> str:
        """As for a text that is this one sentence."""
        return join_parts(self.part(part) for part in parts(normalize(sentence)))

    def part(self, part: Part) -> str:
        """One part's words; what the grammars cannot read stays as it is written. Takes up to 0.3 s
        of English, a second of the dearest languages (decision 0020)."""
        if part.spelled:
            return spell_digits(part.text, self._language)
        if self._is_plain(part.text):
            return part.text
        with self._lock:
            spoken: str = self._library.normalize(part.text)
        # What it gives up on comes back escaped for its grammars.
        return part.text if spoken == _SYNTAX.sub(r"\\\g<0>", part.text) else spoken


def join_parts(spoken: Iterable[str]) -> str:
    """A text of its parts' words."""
    return normalize(" ".join(spoken))


@cache
def load_normalizer(info: NemoStep) -> TextNormalizer:
    """One for each process. Compiles the grammars where that was never done, which takes a minute,
    else reads them, in a second. ValueError says what is missing, see `check`."""
    check(info)
    # Slow to import, and most processes do without it.
    from nemo_text_processing.text_normalization.normalize import Normalizer
    from nemo_text_processing.utils.logging import logger

    # It writes to the console what it reads, users' texts among it.
    logger.disabled = True

    def read(folder: Path) -> TextNormalizer:
        library = Normalizer(input_case="cased", lang=info.language, cache_dir=str(folder))
        if info.language != "en":
            return TextNormalizer(info.language, library)
        return TextNormalizer(info.language, library, load_plain_text())

    folder = cache_folder() / f"nemo-{info.version}" / info.language
    if folder.is_dir():
        return read(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as local:
            compiling = Path(local) / info.language
            normalizer = read(compiling)
            _publish(compiling, folder)
    except OSError as error:
        raise ValueError(
            f"text normalization: cannot keep the compiled grammars in {folder} ({error}); set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return normalizer


def _publish(compiled: Path, folder: Path) -> None:
    """Under its name only when it is whole: several processes may compile at once."""
    try:
        compiled.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def cache_folder() -> Path:
    """Sheen's folder for what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sheen"
