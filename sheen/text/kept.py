"""What no step of the text changes: tags that the model acts, and phonemes that were given.

Owns how both stand in a sentence on its way to the model, and finding them there. A tag stands as
it is written, `<laugh>`. Phonemes stand with their word between three of Unicode's noncharacters,
which are for a program's own use: `clean` takes them out of what users send.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from sheen.text.segmentation import has_word

TAG = regex.compile(r"<[\p{L}_][\p{L}\p{N}_-]*>")
"""What a tag looks like."""

_OPEN, _MIDDLE, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
_NONE = dict.fromkeys(map(ord, (_OPEN, _MIDDLE, _CLOSE)))
_GIVEN = f"{_OPEN}[^{_OPEN}-{_CLOSE}]*{_MIDDLE}[^{_OPEN}-{_CLOSE}]*{_CLOSE}"


@dataclass(frozen=True)
class Piece:
    """A part of a sentence; all of them, put together, are the sentence."""

    text: str
    kept: bool = False

    @property
    def given(self) -> tuple[str, str] | None:
        """The word, and the phonemes that were given for it."""
        if not self.kept or not self.text.startswith(_OPEN):
            return None
        word, _, phonemes = self.text[1:-1].partition(_MIDDLE)
        return word, phonemes

    def split(self) -> tuple[str, str, str]:
        """The white space before it, itself, and the white space after it."""
        core = self.text.strip()
        at = self.text.index(core) if core else len(self.text)
        return self.text[:at], core, self.text[at + len(core) :]


def as_tag(name: str) -> str:
    """`laugh` or `<laugh>` as it stands in a text. Raises ValueError for what no tag can be."""
    tag = name if name.startswith("<") else f"<{name}>"
    if TAG.fullmatch(tag) is None:
        raise ValueError(f"{name!r}: expected a tag of letters, digits, _ and -, such as laugh")
    return tag


def clean(text: str) -> str:
    """Without the characters that mean something here alone."""
    return text.translate(_NONE) if not text.isascii() else text


def with_phonemes(word: str, phonemes: str) -> str:
    """A word that is to be spoken with these phonemes."""
    return f"{_OPEN}{clean(word)}{_MIDDLE}{clean(phonemes)}{_CLOSE}"


def pieces(sentence: str, tags: Sequence[str] = ()) -> list[Piece]:
    """A sentence's parts, those that stay and those between them."""
    if not tags and sentence.isascii():
        return [Piece(sentence)]
    found, at = [], 0
    for match in _pattern(tuple(tags)).finditer(sentence):
        if match.start() > at:
            found.append(Piece(sentence[at : match.start()]))
        found.append(Piece(match[0], kept=True))
        at = match.end()
    if at < len(sentence) or not found:
        found.append(Piece(sentence[at:]))
    return found


def between(piece: Piece, change: Callable[[str], str]) -> str:
    """A piece that does not stay, changed, with the white space around it; one without a word is as
    it was."""
    before, core, after = piece.split()
    return before + (change(core) if has_word(core) else core) + after


def said(words: str, tags: Sequence[str] = ()) -> str:
    """What is heard as words: without tags, and of phonemes that were given their word."""
    parts = [
        piece.text if not piece.kept else piece.given[0] if piece.given else " "
        for piece in pieces(words, tags)
    ]
    return " ".join("".join(parts).split())


@lru_cache(maxsize=16)
def _pattern(tags: tuple[str, ...]) -> "regex.Pattern[str]":
    longest_first = sorted(tags, key=len, reverse=True)
    return regex.compile("|".join([_GIVEN, *map(regex.escape, longest_first)]))
