"""Text normalization: written text -> spoken words, "$5.20" -> "five dollars twenty cents".

Owns the library, its compiled grammars, the rule for texts that they leave as they are, and the
record of library and version in datasets and checkpoints, so that a model gets texts in the form
that it was trained on. Refuses a version of the library other than the recorded one, and languages
without grammars.

Texts are normalized sentence by sentence, and sentences in parts of bounded work. The split depends
on the text alone, so a text has the same spoken form in encoding and in serving, on a busy machine
and on an idle one. The bound is needed because the grammars try every reading of every digit and
sign: one costs as much as ten letters, and a sequence of numbers of 1,000 characters takes 3 to 20
seconds (decision 0020).
"""

import importlib.metadata
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import regex
from pydantic import BaseModel

from sheen.text.prompt import normalize
from sheen.text.segmentation import split_sentences

PARTS_VERSION: Literal["parts-1"] = "parts-1"
"""Recorded in datasets and checkpoints; a change of the bounds or the rule needs a new version."""
LONGEST_PART = 120
"""Characters."""
MOST_SIGNS = 40
"""Most digits and signs of a part, that is characters other than letters and white space. A date, a
time and two telephone numbers have about as many."""

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
"""Between two words in lower case, where no number, unit, date or abbreviation continues."""
_SIGN = regex.compile(r"[^\p{L}\p{M}\s]")
_LETTER = regex.compile(r"\p{L}")
_DIGIT = re.compile(r"\d")  # not of `regex`: it knows digits of a Unicode that `int` does not
_STOPS = regex.compile(r" (?=[,.;:!?)\]}])")


@dataclass(frozen=True)
class Part:
    """A unit of normalization. A `spelled` part is read by `spell_digits` instead."""

    text: str
    spelled: bool = False

    @property
    def work(self) -> int:
        """The part's length for the library, in letters: a digit or a sign counts as ten."""
        return len(self.text) + 9 * _signs(self.text)


def parts(sentence: str) -> Iterator[Part]:
    """Split a sentence, without runs of white space; joined by spaces, the parts are the sentence.

    It is split between words in lower case, each part as long as allowed. A stretch that is too
    long without such a place is spelled if it has more digits and signs than letters, as a table
    has; otherwise it is split between any words. A single word that is too long is spelled.
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
    """Read each digit as a word and leave everything else as written; without the library."""
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
"""ISO 639-1 codes, and their other names: ISO 639-2 codes and words. These are the library's
languages whose grammars can process any text, see decision 0020."""
_SYNTAX = re.compile(r"[\[\]\\]")


def language_code(asked: str) -> str:
    """The code in LANGUAGES for a code or a name (`en-US`, `eng`, `English (US)`), by its first
    word; for any other language that word in lower case."""
    word = re.match(r"[^\W\d_]*", asked.strip().casefold())
    assert word is not None  # it may be empty
    names = {name: code for code, names in LANGUAGES.items() for name in names}
    return names.get(word[0], word[0])


class NemoStep(BaseModel, extra="forbid", frozen=True):
    """Written text to spoken words."""

    name: Literal["nemo_text_processing"] = LIBRARY
    version: str
    """Version of the library, with which its grammars change."""
    language: str
    segmentation: Literal["sentences", "parts-1"] = "sentences"
    """Whether the library got sentences in parts (PARTS_VERSION) or, in old records, whole.
    The latter are now normalized in parts too, which changes words in a sentence with a long
    sequence of numbers."""


def describe(language: str) -> NemoStep:
    """The step with the installed library, for a language of LANGUAGES by code or name. Raises
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
            f"text normalization: the texts were normalized by {LIBRARY} {info.version}, but "
            f"{installed} is installed, whose results may differ. Install {info.version}, or "
            f"encode and train again with {installed}"
        )


def _installed(language: str) -> str:
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"text normalization ({language}): {LIBRARY} is not installed. It is available on "
            "Linux on x86-64 only; use such a machine, or a model that was trained without text "
            "normalization"
        ) from None


PlainText = Callable[[str], bool]
"""Whether a part of a sentence is certainly its own spoken form."""

_TABLES = ("whitelist/tts.tsv", "whitelist/symbol.tsv")
"""Tables of the library's replacements; each line begins with a written form and a tab."""
_BY_RULE = ("st", "St", "per")
"""Words that the library replaces by rules in its code: "St" before a name, units after "per"."""
_WORD = re.compile(r"([A-Z]?[a-z]+(?:'[a-z]+)?|A|I(?:'[a-z]+)?)[,;:]?")
_NUMBERED = frozenset(("chapter", "class", "part", "article", "section", "paragraph"))
"""After these words, as after names, "I" is a Roman numeral: roman/key_word.tsv."""


def load_plain_text() -> PlainText:
    """The rule for the installed nemo_text_processing. Reads its tables of 4,000 lines.

    The grammars take 5 to 10 ms per sentence, most of the decoding time of an encode job, although
    of English in plain words they change only abbreviations in the library's own tables ("etc.",
    "tv"). Text with digits, signs or words in capitals is not plain.
    """
    data = resources.files("nemo_text_processing") / "text_normalization" / "en" / "data"
    forms = (
        line.partition("\t")[0]
        for table in _TABLES
        for line in data.joinpath(table).read_text("utf-8").splitlines()
    )
    replaced = _distinctive_words(forms) | frozenset(_BY_RULE)

    def is_plain(text: str) -> bool:
        before = ""
        *words, last = text.split(" ")
        for word in (*words, last.rstrip(".!?") if last[-2:-1].isalpha() else last):
            found = _WORD.fullmatch(word)
            if found is None or found[1] in replaced:
                return False
            if found[1] == "I" and before and (before in _NUMBERED or not before.islower()):
                return False
            before = found[1]
        return True

    return is_plain


def _distinctive_words(forms: Iterable[str]) -> frozenset[str]:
    """The longest word of each written form in plain words: a text without it does not contain the
    form."""
    plain = (
        words
        for form in forms
        if all(map(_WORD.fullmatch, words := form.rstrip(".!?").replace(". ", " ").split()))
    )
    longest = (max(words, key=len).rstrip(",;:") for words in plain if words)
    return frozenset(longest) - {"A", "I", "a"}  # forms with these have another single letter


class TextNormalizer:
    """Called with a text, returns its spoken form; see `load_normalizer`. Threads take turns."""

    def __init__(
        self, language: str, library: Any, is_plain: PlainText = lambda text: False
    ) -> None:
        """library: the Normalizer of nemo_text_processing. is_plain: texts that it would not
        change, and which skip it."""
        self._language = language
        self._library = library
        self._is_plain = is_plain
        self._lock = threading.Lock()

    def __call__(self, text: str) -> str:
        """Empty for a text without a word."""
        return join_parts(map(self.sentence, split_sentences(text, self._language)))

    def sentence(self, sentence: str) -> str:
        """The spoken form of a single sentence."""
        return join_parts(self.part(part) for part in parts(normalize(sentence)))

    def part(self, part: Part) -> str:
        """The words of one part, as written where the grammars cannot read it. Takes up to 0.3 s
        in English, up to a second in other languages (decision 0020)."""
        if part.spelled:
            return spell_digits(part.text, self._language)
        if self._is_plain(part.text):
            return part.text
        with self._lock:
            spoken: str = self._library.normalize(part.text)
        # The library returns text that it cannot read, escaped for its grammars.
        return part.text if spoken == _SYNTAX.sub(r"\\\g<0>", part.text) else spoken


def join_parts(spoken: Iterable[str]) -> str:
    """Join the words of parts to a text."""
    return normalize(" ".join(spoken))


@cache
def load_normalizer(info: NemoStep) -> TextNormalizer:
    """The normalizer, one per process. The first time on a machine it compiles the grammars, in a
    minute; later it reads them, in a second. Raises ValueError, see `check`."""
    check(info)
    # Slow to import, and most processes do without it.
    from nemo_text_processing.text_normalization.normalize import Normalizer
    from nemo_text_processing.utils.logging import logger

    # It logs the texts that it reads, which may be private.
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
    """Rename only when complete: several processes may compile at the same time."""
    try:
        compiled.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def cache_folder() -> Path:
    """Sheen's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "sheen"
