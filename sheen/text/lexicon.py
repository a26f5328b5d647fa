"""Lexicons: pronunciations of words and phrases.

Owns the file's form, the entries' meaning, and finding them in a sentence. An entry is a word or
phrase and its pronunciation: a respelling, or phonemes between slashes if the model was trained on
phonemes. An entry without a pronunciation or with unknown phonemes is an error that names the word.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import regex

from sheen.storage import files
from sheen.text.kept import Fragment, clean, fragments, with_phonemes
from sheen.text.phonemes import from_ipa
from sheen.text.prompt import check_characters, normalize
from sheen.text.segmentation import has_word

_ATOM = regex.compile(r"[\p{L}\p{M}\p{N}]+|\s+|[^\p{L}\p{M}\p{N}\s]")
"""A run of letters and digits, a run of white space, or any other character."""

Atoms = tuple[str, ...]
Entry = tuple[Atoms | None, str]
"""The atoms as they are written, None where their case does not matter; and the pronunciation."""


class Lexicon:
    """Entries; where several match, the longest one counts.

    An entry in lower case matches any case, as `api` does API; one with a capital letter matches
    itself alone, so that `US` does not match "us".
    """

    def __init__(self, entries: Mapping[str, str], phonemes: bool = False) -> None:
        """phonemes: whether the model was trained on them. Raises ValueError naming the word."""
        # Looked up and not compared one by one: a request brings hundreds of entries that may all
        # begin like all of its text.
        self._entries: dict[Atoms, list[Entry]] = {}  # by their atoms, case folded
        self._lengths: dict[str, list[int]] = {}  # by their first atom, the longest first
        for written, spoken in entries.items():
            check_characters(written, repr(written))
            check_characters(spoken, f"{written!r}: the pronunciation")
            atoms = _atoms(normalize(clean(written)))
            if not has_word(written):
                raise ValueError(f"{written!r}: expected a word with a letter or a digit")
            exact = tuple(atoms) if written != written.lower() else None
            folded = _folded(atoms)
            entry = exact, _spoken(written, spoken, phonemes)
            self._entries.setdefault(folded, []).append(entry)
            self._lengths.setdefault(folded[0], []).append(len(folded))
        self._lengths = {
            first: sorted(set(lengths), reverse=True) for first, lengths in self._lengths.items()
        }

    def at(self, atoms: Sequence[str], folded: Atoms, place: int) -> tuple[int, str] | None:
        """The longest entry at a position of `atoms`, which are also given case folded: its number
        of atoms, and its pronunciation."""
        for length in self._lengths.get(folded[place], ()):
            here = slice(place, place + length)
            for exact, spoken in self._entries.get(folded[here], ()):
                if exact is None or exact == tuple(atoms[here]):
                    return length, spoken
        return None


def _atoms(text: str) -> list[str]:
    """The atoms of a text, every white space as one space."""
    return [" " if atom.isspace() else atom for atom in _ATOM.findall(text)]


def _folded(atoms: Sequence[str]) -> Atoms:
    return tuple(atom.casefold() for atom in atoms)


def _spoken(written: str, spoken: str, phonemes: bool) -> str:
    spoken = clean(spoken).strip()
    if len(spoken) > 2 and spoken[0] == spoken[-1] == "/":
        if not phonemes:
            raise ValueError(
                f"{written!r}: {spoken} are phonemes, which this model was not trained on; give a "
                "respelling"
            )
        try:
            return with_phonemes(written, from_ipa(spoken[1:-1]))
        except ValueError as error:
            raise ValueError(f"{written!r}: {error}") from error
    if not has_word(spoken):
        raise ValueError(f"{written!r}: the pronunciation {spoken!r} has no word")
    return spoken


def respell(sentence: str, lexicons: Sequence[Lexicon], tags: Sequence[str] = ()) -> str:
    """A sentence with the lexicons' words replaced by their pronunciations. Where several lexicons
    have an entry, the first one counts; pronunciations and tags are not searched."""
    if not lexicons:
        return sentence
    return "".join(
        fragment.text if fragment.kept else "".join(_respelled(fragment, lexicons))
        for fragment in fragments(sentence, tags)
    )


def _respelled(fragment: Fragment, lexicons: Sequence[Lexicon]) -> Iterator[str]:
    atoms = _atoms(normalize_keeping_ends(fragment.text))
    folded, place = _folded(atoms), 0
    while place < len(atoms):
        entries = (lexicon.at(atoms, folded, place) for lexicon in lexicons)
        found = next(filter(None, entries), None)
        taken, spoken = found or (1, atoms[place])
        yield spoken
        place += taken


def normalize_keeping_ends(text: str) -> str:
    """As `normalize`, but white space at either end becomes one space."""
    core = normalize(text)
    before, after = text[:1].isspace(), text[-1:].isspace()
    return f"{' ' * before}{core}{' ' * (after and bool(core))}"


def read_lexicon(location: str, phonemes: bool = False) -> Lexicon:
    """Read a file, see `read_entries`; `phonemes`: see `Lexicon`. Raises ValueError naming the file
    and the word."""
    entries = read_entries(location)
    try:
        return Lexicon(entries, phonemes)
    except ValueError as error:
        raise ValueError(f"lexicon {location}: {error}") from error


def read_entries(location: str) -> dict[str, str]:
    """Read a file, path or URI: a JSON object of words and their pronunciations. Raises ValueError
    naming the file and the word."""
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
            raise ValueError(f"{word!r} occurs twice")
        found[word] = spoken
    return found
