"""How much text is normalised at once: sentences cut into parts of bounded work.

Owns the rule, which looks at the text alone, so that a text has the same words at encoding and in
serving, on a busy machine and on an idle one. The library's grammars follow every reading of every
digit and sign: one costs as much as ten letters, and a row of numbers of 1,000 characters 3 to 20
seconds (decision 0020). Knows nothing of the library.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import regex

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
_DIGIT = regex.compile(r"\p{Nd}")
_STOPS = regex.compile(r" (?=[,.;:!?)\]}])")


@dataclass(frozen=True)
class Part:
    """What is normalised at once. One that is `spelled` is not normalised, see `spell_digits`."""

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
    return _STOPS.sub("", " ".join(spelled.split()))


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
