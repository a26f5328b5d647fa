"""Lexicons: words that a voice should say in another way than it is written.

Owns the file's form, the entries' meaning, and finding them in a sentence. An entry is a word, or
several, and what is said for it: a respelling, or phonemes between slashes where the model was
taught phonemes. Refuses, by its word, an entry that says nothing and phonemes that the model does
not know.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import regex

from sheen.storage import files
from sheen.text.kept import Piece, clean, pieces, with_phonemes
from sheen.text.phonemes import from_ipa
from sheen.text.prompt import normalize
from sheen.text.segmentation import has_word

_ATOM = regex.compile(r"[\p{L}\p{M}\p{N}]+|\s+|[^\p{L}\p{M}\p{N}\s]")
"""A run of letters and digits, which is never cut; a run of white space; any other character."""

Entry = tuple[list[str], bool, str]
"""The atoms, whether their case matters, and what is said."""


class Lexicon:
    """Entries, of which the one with the most words counts where several stand in a text.

    A word without a capital stands for any case, `api` for API; one with a capital for itself
    alone, so that `US` is not us.
    """

    def __init__(self, entries: Mapping[str, str], phonemes: bool = False) -> None:
        """phonemes: whether the model was taught them. Raises ValueError, which names the word."""
        self._by_first: dict[str, list[Entry]] = {}
        for written, spoken in entries.items():
            atoms = _ATOM.findall(normalize(clean(written)))
            if not has_word(written):
                raise ValueError(f"{written!r}: expected a word to look for")
            exact = written != written.lower()
            entry = atoms, exact, _spoken(written, spoken, phonemes)
            self._by_first.setdefault(atoms[0].casefold(), []).append(entry)
        for found in self._by_first.values():
            found.sort(key=lambda entry: len(entry[0]), reverse=True)

    def at(self, atoms: Sequence[str], place: int) -> tuple[int, str] | None:
        """How many atoms from a place on are the longest entry there, and what is said for them."""
        for wanted, exact, spoken in self._by_first.get(atoms[place].casefold(), ()):
            here = atoms[place : place + len(wanted)]
            if len(here) == len(wanted) and all(map(_same(exact), here, wanted)):
                return len(wanted), spoken
        return None


def _same(exact: bool) -> Any:
    def same(one: str, other: str) -> bool:
        if one.isspace():
            return other.isspace()
        return one == other if exact else one.casefold() == other.casefold()

    return same


def _spoken(written: str, spoken: str, phonemes: bool) -> str:
    spoken = clean(spoken).strip()
    if len(spoken) > 2 and spoken[0] == spoken[-1] == "/":
        if not phonemes:
            raise ValueError(
                f"{written!r}: {spoken} are phonemes, and this model was taught letters; give a "
                "respelling"
            )
        try:
            return with_phonemes(written, from_ipa(spoken[1:-1]))
        except ValueError as error:
            raise ValueError(f"{written!r}: {error}") from error
    if not has_word(spoken):
        raise ValueError(f"{written!r}: {spoken!r} has no word to say for it")
    return spoken


def respell(sentence: str, lexicons: Sequence[Lexicon], tags: Sequence[str] = ()) -> str:
    """A sentence with what is said for the words of the lexicons. The first lexicon that has an
    entry at a place counts; what was put in is not looked at again, nor are tags."""
    if not lexicons:
        return sentence
    return "".join(
        piece.text if piece.kept else "".join(_respelled(piece, lexicons))
        for piece in pieces(sentence, tags)
    )


def _respelled(piece: Piece, lexicons: Sequence[Lexicon]) -> Iterator[str]:
    atoms = _ATOM.findall(normalize_keeping_ends(piece.text))
    place = 0
    while place < len(atoms):
        found = next((entry for lexicon in lexicons if (entry := lexicon.at(atoms, place))), None)
        taken, spoken = found or (1, atoms[place])
        yield spoken
        place += taken


def normalize_keeping_ends(text: str) -> str:
    """As `normalize`, with one space where white space stands at an end."""
    core = normalize(text)
    before, after = text[:1].isspace(), text[-1:].isspace()
    return f"{' ' * before}{core}{' ' * (after and bool(core))}"


def read_lexicon(location: str, phonemes: bool = False) -> Lexicon:
    """Read a file, see `read_entries`, for a model that was taught phonemes or letters. Raises
    ValueError, which names the file and the word."""
    entries = read_entries(location)
    try:
        return Lexicon(entries, phonemes)
    except ValueError as error:
        raise ValueError(f"lexicon {location}: {error}") from error


def read_entries(location: str) -> dict[str, str]:
    """Read a file, path or URI: a JSON object of words and what is said for each. Raises
    ValueError, which names the file and the word."""
    try:
        entries = json.loads(files.read_bytes(location), object_pairs_hook=_once)
        if not isinstance(entries, dict):
            raise ValueError('expected an object such as {"SQL": "sequel"}')
        for word, spoken in entries.items():
            if not isinstance(spoken, str):
                raise ValueError(f"{word!r}: expected text, not {spoken!r}")
        return entries
    except (OSError, ValueError) as error:
        raise ValueError(f"lexicon {location}: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for word, spoken in pairs:
        if word in found:
            raise ValueError(f"{word!r} is there twice")
        found[word] = spoken
    return found
