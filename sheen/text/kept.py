"""Parts of a text that no normalization step changes: the model's tags, and given phonemes.

Owns their representation in a sentence on its way to the model, and finding them. A tag is written
as in the text, `<laugh>`. Phonemes are written with their word between three of Unicode's
noncharacters, which are reserved for internal use: `clean` removes these, and two more that mark
aliases, from user input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import regex

from sheen.text.segmentation import has_word

TAG = regex.compile(r"<[\p{L}_][\p{L}\p{N}_-]*>")
"""A tag, such as `<laugh>`."""

_OPEN, _MIDDLE, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2"
ALIAS_OPEN, ALIAS_CLOSE = "\ufdd3", "\ufdd4"
"""Around the alias of an SSML `sub`, as far as `sheen.text.delivery`."""
_NONE = dict.fromkeys(map(ord, (_OPEN, _MIDDLE, _CLOSE, ALIAS_OPEN, ALIAS_CLOSE)))
_END = regex.compile(r"[^\p{L}\p{M}\p{N}]*$")
_GIVEN = f"{_OPEN}[^{_OPEN}-{_CLOSE}]*{_MIDDLE}[^{_OPEN}-{_CLOSE}]*{_CLOSE}"


@dataclass(frozen=True)
class Fragment:
    """A part of a sentence; the concatenation of all parts is the sentence."""

    text: str
    kept: bool = False

    @property
    def given(self) -> tuple[str, str] | None:
        """The word and its given phonemes; None for other parts."""
        if not self.kept or not self.text.startswith(_OPEN):
            return None
        word, _, phonemes = self.text[1:-1].partition(_MIDDLE)
        return word, phonemes

    def split(self) -> tuple[str, str, str]:
        """The leading white space, the text, and the trailing white space."""
        core = self.text.strip()
        at = self.text.index(core) if core else len(self.text)
        return self.text[:at], core, self.text[at + len(core) :]


def as_tag(name: str) -> str:
    """`laugh` or `<laugh>` in the form `<laugh>`. Raises ValueError for an invalid name."""
    tag = name if name.startswith("<") else f"<{name}>"
    if TAG.fullmatch(tag) is None:
        raise ValueError(f"{name!r}: expected a tag of letters, digits, _ and -, such as laugh")
    return tag


def clean(text: str) -> str:
    """Remove the characters that are reserved here."""
    return text.translate(_NONE) if not text.isascii() else text


def with_phonemes(word: str, phonemes: str) -> str:
    """The representation of a word with given phonemes."""
    return f"{_OPEN}{clean(word)}{_MIDDLE}{clean(phonemes)}{_CLOSE}"


def as_alias(alias: str) -> str:
    """An alias with its marks, which leave out the punctuation at its end: that ends sentences."""
    end = _END.search(alias)
    assert end is not None, "it may be empty"
    return f"{ALIAS_OPEN}{alias[: end.start()]}{ALIAS_CLOSE}{alias[end.start() :]}"


def fragments(sentence: str, tags: Sequence[str] = ()) -> list[Fragment]:
    """Split a sentence into kept parts and the parts between them."""
    if not tags and sentence.isascii():
        return [Fragment(sentence)]
    found, at = [], 0
    for match in _pattern(tuple(tags)).finditer(sentence):
        if match.start() > at:
            found.append(Fragment(sentence[at : match.start()]))
        found.append(Fragment(match[0], kept=True))
        at = match.end()
    if at < len(sentence) or not found:
        found.append(Fragment(sentence[at:]))
    return found


def between(fragment: Fragment, change: Callable[[str], str]) -> str:
    """Apply `change` to a fragment that is not kept, preserving surrounding white space; a fragment
    without a word is not changed."""
    before, core, after = fragment.split()
    return before + (change(core) if has_word(core) else core) + after


def expected_transcript(words: str, tags: Sequence[str] = ()) -> str:
    """The words that a transcript should have: without tags, and words instead of phonemes."""
    parts = [
        fragment.text if not fragment.kept else fragment.given[0] if fragment.given else " "
        for fragment in fragments(words, tags)
    ]
    return " ".join("".join(parts).split())


@lru_cache(maxsize=16)
def _pattern(tags: tuple[str, ...]) -> "regex.Pattern[str]":
    longest_first = sorted(tags, key=len, reverse=True)
    return regex.compile("|".join([_GIVEN, *map(regex.escape, longest_first)]))
