"""The text of a recording, divided among its segments by matching their transcripts.

Owns the matching of two sequences of words, and the division of the text. There is no acoustic
alignment: an ASR's words are correct often enough that rare sequences of four of them anchor the
transcript in a book. Between anchors, words are aligned by edit distance; a passage without an
anchor was not read. Reads no files.

Shapes: a words of the transcript, t words of the text.
"""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein

from sheen.scoring.wer import normalize_words

GRAMS = (4, 3)
"""Words of an anchor: in the whole text, then between two anchors, where fewer words are rare
enough. Three words would match 40,000 words away in a book; twelve would rarely match at all, since
they often contain an ASR error."""
LONGEST_GAP = 200
"""Words between two anchors. A longer gap means that the reading and the text differ: even an ASR
with a third of its words wrong leaves gaps of at most 90."""
LEAST_MATCHED = 0.5
"""Least share of a segment's words that are in the text; with less, the segment is not part of
it."""
SKIPPED = 3
"""Words between two segments that the ASR may have missed; more than that were not read."""

_NOWHERE = -1
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’»)\]]*$")
_CLAUSE_END = re.compile(r"[,;:—–][\"'”’»)\]]*$")
Places = NDArray[np.int64]


def match_words(spoken: Sequence[str], text: Sequence[str]) -> Places:
    """The position in the text of each spoken word, `[a]`, increasing; -1 for words not in it.

    A word that the ASR got wrong has the position of the word that it replaces.
    """
    places = np.full(len(spoken), _NOWHERE, np.int64)
    _match(spoken, text, 0, 0, GRAMS, places)
    return places


def _match(
    spoken: Sequence[str],
    text: Sequence[str],
    first_spoken: int,
    first_text: int,
    grams: tuple[int, ...],
    places: Places,
) -> None:
    """Match two stretches, which begin at `first_spoken` and `first_text`; fills `places`."""
    if not spoken or not text:
        return
    anchors = _anchors(spoken, text, grams[0]) if grams else []
    if not anchors:
        if len(spoken) <= LONGEST_GAP and len(text) <= LONGEST_GAP:
            for here, there in _aligned(spoken, text):
                places[first_spoken + here] = first_text + there
        elif len(grams) > 1:
            _match(spoken, text, first_spoken, first_text, grams[1:], places)
        return
    for here, there in anchors:
        places[first_spoken + here] = first_text + there
    ends = [(-1, -1), *anchors, (len(spoken), len(text))]
    for number, ((here, there), (next_here, next_there)) in enumerate(pairwise(ends)):
        said, written = spoken[here + 1 : next_here], text[there + 1 : next_there]
        skipped = 0
        if number == 0 and len(written) > 2 * len(said):
            # The text continues outside the recording: match only the words near the anchor.
            skipped = len(written) - len(said)
        elif number == len(anchors) and len(written) > 2 * len(said):
            written = written[: len(said)]
        _match(
            said,
            written[skipped:],
            first_spoken + here + 1,
            first_text + there + 1 + skipped,
            grams[1:],
            places,
        )


def _anchors(spoken: Sequence[str], text: Sequence[str], size: int) -> list[tuple[int, int]]:
    """Pairs of positions of words in sequences that occur once on each side, both increasing."""
    ours, theirs = _once(spoken, size), _once(text, size)
    pairs = sorted((place, theirs[gram]) for gram, place in ours.items() if gram in theirs)
    rising = _longest_rising([there for _, there in pairs])
    found: dict[int, int] = {}
    for place in rising:
        here, there = pairs[place]
        for step in range(size):
            found.setdefault(here + step, there + step)
    anchors: list[tuple[int, int]] = []
    for here, there in sorted(found.items()):
        if not anchors or there > anchors[-1][1]:
            anchors.append((here, there))
    return anchors


def _once(words: Sequence[str], size: int) -> dict[Hashable, int]:
    grams = [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]
    counts = Counter(grams)
    return {gram: place for place, gram in enumerate(grams) if counts[gram] == 1}


def _longest_rising(values: Sequence[int]) -> list[int]:
    """Places of the longest strictly rising subsequence, by patience sorting."""
    tops: list[int] = []
    piles: list[int] = []  # the place of each pile's top
    before = [_NOWHERE] * len(values)
    for place, value in enumerate(values):
        pile = bisect_left(tops, value)
        before[place] = piles[pile - 1] if pile else _NOWHERE
        if pile == len(piles):
            piles.append(place)
            tops.append(value)
        else:
            piles[pile], tops[pile] = place, value
    row: list[int] = []
    at = piles[-1] if piles else _NOWHERE
    while at != _NOWHERE:
        row.append(at)
        at = before[at]
    return row[::-1]


def _aligned(spoken: Sequence[str], text: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of positions of equal or substituted words in the cheapest edit."""
    for edit in Levenshtein.opcodes(spoken, text):
        if edit.tag in ("equal", "replace"):
            yield from zip(
                range(edit.src_start, edit.src_end),
                range(edit.dest_start, edit.dest_end),
                strict=False,
            )


@dataclass(frozen=True)
class TextWords:
    """A text as written, and its normalized words."""

    written: list[str]
    """Between white space."""
    words: list[str]
    written_at: list[int]
    """Index in `written` of each word: "well-known" has two words, a dash none."""

    @classmethod
    def of(cls, text: str) -> "TextWords":
        written = text.split()
        words: list[str] = []
        written_at: list[int] = []
        for place, joined in enumerate(written):
            for word in normalize_words(joined).split():
                words.append(word)
                written_at.append(place)
        return cls(written, words, written_at)

    def between(self, first: int, end: int) -> str:
        """The written text from word `first` to before word `end`, with trailing dashes."""
        until = self.written_at[end] if end < len(self.words) else len(self.written)
        return " ".join(self.written[self.written_at[first] : until])

    def pause_before(self, word: int) -> float:
        """How likely a pause is before a word: 1 after a sentence, 0.5 after a clause, -1 within a
        written word, else 0."""
        if word <= 0 or word >= len(self.words):
            return 0.0
        if self.written_at[word] == self.written_at[word - 1]:
            return -1.0
        before = self.written[self.written_at[word] - 1]
        return 1.0 if _SENTENCE_END.search(before) else 0.5 if _CLAUSE_END.search(before) else 0.0


@dataclass
class _Part:
    """Words `first` to before `end` of the text; `missed_before` and `missed_after`: how many words
    at either end of the segment have no position."""

    first: int
    end: int
    missed_before: int
    missed_after: int


def texts_of_segments(transcripts: Sequence[str], text: str) -> list[str | None]:
    """The part of a text that each segment speaks, as written; None for a segment not in it.

    `transcripts`: those of a recording's segments, in order. No word of the text is given to two
    segments. Words between two segments are divided between them, unless more than SKIPPED of them
    are missing from the transcripts.
    """
    whole = TextWords.of(text)
    spoken = [normalize_words(transcript).split() for transcript in transcripts]
    places = match_words([word for words in spoken for word in words], whole.words)
    parts: list[_Part | None] = []
    at = 0
    for words in spoken:
        parts.append(_part(words, places[at : at + len(words)], whole.words))
        at += len(words)
    known = [part for part in parts if part is not None]
    for left, right in zip([None, *known], [*known, None], strict=True):
        _divide(left, right, whole)
    return [None if part is None else whole.between(part.first, part.end) for part in parts]


def _part(spoken: Sequence[str], places: Places, text: Sequence[str]) -> _Part | None:
    """The part by its equal words; None if there are too few, or if they are too far apart in the
    text because something between them was not read."""
    same = [
        place != _NOWHERE and word == text[place]
        for word, place in zip(spoken, places, strict=True)
    ]
    found = np.flatnonzero(same)
    if not len(found) or len(found) < LEAST_MATCHED * len(spoken):
        return None
    first, last = int(places[found[0]]), int(places[found[-1]])
    if last - first + 1 > 2 * len(places) + SKIPPED:
        return None
    return _Part(first, last + 1, int(found[0]), len(places) - 1 - int(found[-1]))


def _divide(left: _Part | None, right: _Part | None, whole: TextWords) -> None:
    """Divide the words between two parts among them."""
    if left is None or right is None:
        if right is not None:
            right.first = max(0, right.first - right.missed_before)
        if left is not None:
            left.end = min(len(whole.words), left.end + left.missed_after)
        return
    gap = right.first - left.end
    ours, theirs = left.missed_after, right.missed_before
    if gap > ours + theirs + SKIPPED:
        left.end += ours
        right.first -= theirs
        return
    wish = gap * (ours / (ours + theirs) if ours + theirs else 0.5)
    # A cut at the end of a sentence may be two words away from where the transcripts put it.
    cut = min(
        range(gap + 1),
        key=lambda words: abs(words - wish) - 2 * whole.pause_before(left.end + words),
    )
    left.end += cut
    right.first = left.end
