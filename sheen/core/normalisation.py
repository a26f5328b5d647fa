"""Written text -> the words that are spoken: "$5.20" -> "five dollars twenty cents".

Owns the library that does it, its compiled grammars, and the record of both that a dataset and a
checkpoint carry: a model is given its texts in the form that it was taught. Refuses another version
of the library than the recorded one. Sentence by sentence, and these in parts of bounded work
(`normalisation_work`), in training as in serving, so that a text has one spoken form however much
of it is there.
"""

import importlib.metadata
import os
import re
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from sheen.core.normalisation_work import PARTS_VERSION, Part, parts, spell_digits
from sheen.core.prompt import normalise
from sheen.core.text import split_sentences

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


class NormalisationInfo(BaseModel, extra="forbid", frozen=True):
    """What made the spoken form of texts."""

    library: Literal["nemo_text_processing"]
    version: str
    """Of the library: its grammars change with it."""
    language: str
    parts: Literal["sentences", "parts-1"] = "sentences"
    """What the library was given at once: `normalisation_work.PARTS_VERSION`; before there was one,
    whole sentences. These are now read in parts too, which changes words where a sentence holds a
    long row of numbers."""


def describe(language: str) -> NormalisationInfo:
    """The normalisation that is installed here, for a language of LANGUAGES or its name. Raises
    ValueError."""
    language = language_code(language)
    info = NormalisationInfo(
        library=LIBRARY, version=_installed(language), language=language, parts=PARTS_VERSION
    )
    check(info)
    return info


def check(info: NormalisationInfo) -> None:
    """Raise ValueError unless `load_normaliser` can load this here; quick, loads nothing."""
    if info.language not in LANGUAGES:
        raise ValueError(
            f"text normalisation: unknown language {info.language!r}; known: {', '.join(LANGUAGES)}"
        )
    if (installed := _installed(info.language)) != info.version:
        raise ValueError(
            f"text normalisation: the texts were normalised by {LIBRARY} {info.version}, here is "
            f"{installed}, which may read them otherwise. Install {info.version}, or encode and "
            f"train again with {installed}"
        )


def _installed(language: str) -> str:
    try:
        return importlib.metadata.version(LIBRARY)
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"text normalisation ({language}): {LIBRARY} is not installed. Sheen brings it on "
            "Linux on x86-64, where alone its grammars can be compiled; use such a machine, or a "
            "model that was taught texts as they are"
        ) from None


class Normaliser:
    """Call it with a text for its spoken form, see `load_normaliser`. One thread at a time."""

    def __init__(self, language: str, library: Any) -> None:
        """library: the Normalizer of nemo_text_processing."""
        self._language = language
        self._library = library

    def __call__(self, text: str) -> str:
        """Empty for a text without a word."""
        sentences = split_sentences(text, self._language)
        return join_parts(
            self.part(part) for sentence in sentences for part in parts(normalise(sentence))
        )

    def part(self, part: Part) -> str:
        """One part's words; what the grammars cannot read stays as it is written. Takes up to 0.3 s
        of English, a second of the dearest languages (decision 0020)."""
        if part.spelled:
            return spell_digits(part.text, self._language)
        spoken: str = self._library.normalize(part.text)
        # What it gives up on comes back escaped for its grammars.
        return part.text if spoken == _SYNTAX.sub(r"\\\g<0>", part.text) else spoken


def join_parts(spoken: Iterable[str]) -> str:
    """A text of its parts' words."""
    return normalise(" ".join(spoken))


@cache
def load_normaliser(info: NormalisationInfo) -> Normaliser:
    """One for each process. Compiles the grammars where that was never done, which takes a minute,
    else reads them, in a second. ValueError says what is missing, see `check`."""
    check(info)
    # Slow to import, and most processes do without it.
    from nemo_text_processing.text_normalization.normalize import Normalizer
    from nemo_text_processing.utils.logging import logger

    # It writes to the console what it reads, users' texts among it.
    logger.disabled = True

    def read(folder: Path) -> Normaliser:
        library = Normalizer(input_case="cased", lang=info.language, cache_dir=str(folder))
        return Normaliser(info.language, library)

    folder = cache_folder() / f"nemo-{info.version}" / info.language
    if folder.is_dir():
        return read(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as local:
            compiling = Path(local) / info.language
            normaliser = read(compiling)
            _publish(compiling, folder)
    except OSError as error:
        raise ValueError(
            f"text normalisation: cannot keep the compiled grammars in {folder} ({error}); set "
            "XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return normaliser


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
