"""Long texts: split into sentences as they arrive, and into chunks of a length the model knows.

Owns where a text may be split, and how sentences are packed into chunks. Joining the audio is
`engine.chunks`'; sentences are normalized between the two steps (`text.normalization`).
"""

import math
from collections.abc import Iterable

import regex
import sentencex

LONGEST_SENTENCE = 1000
"""Characters. A longer sentence is cut, since segmentation takes quadratic time."""
SHORT = 200
"""Characters. An incomplete sentence longer than this is not segmented again at every word."""
LONGEST_ASIDE = 200
"""Characters. A sentence does not end inside an open quote or bracket before this length."""

_LINE_ENDS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"  # str.splitlines'
_FULL_WIDTH_ENDS = "。！？｡"
"""After these the next sentence begins without white space."""
_ASIDES = ("“", "”"), ("(", ")"), ("[", "]"), ("「", "」")


class SentenceStream:
    """Sentences of a text that arrives in parts, as a language model writes it.

    A sentence is complete when the first word after it is complete, and at a line break, so that
    the result depends on the text alone and not on its parts. A sentence may contain others in
    quotes or brackets, see LONGEST_ASIDE. Text without a word (`has_word`) is joined to a neighbor
    on the same line, or skipped.
    """

    def __init__(self, language: str | None = None) -> None:
        """language: ISO 639-1, for sentencex's abbreviations; unknown ones are read as English"""
        self._language = language or "en"
        self._rest = ""
        self._looked = 0  # length of the rest when it was last segmented without a result

    def push(self, text: str) -> list[str]:
        """The sentences that `text` completes."""
        found: list[str] = []
        for character in text:
            if character in _LINE_ENDS:
                found += self.finish()
                continue
            before, self._rest = self._rest[-1:], self._rest + character
            ends_word = character.isspace() and before and not before.isspace()
            ends_clause = before in _FULL_WIDTH_ENDS and character not in _FULL_WIDTH_ENDS
            # Else a text without a sentence end would take quadratic time.
            due = len(self._rest) <= SHORT or len(self._rest) - self._looked > self._looked // 8
            if (ends_word or (before and ends_clause)) and due:
                found += self._complete()
                self._looked = len(self._rest)
            if len(self._rest) >= LONGEST_SENTENCE:
                found += self._cut()
        return found

    def finish(self) -> list[str]:
        """The remaining sentences. The stream may be used again."""
        parts = _segment(self._rest, self._language)
        self._rest, self._looked = "", 0
        return [part.strip() for part in parts]

    def _complete(self) -> list[str]:
        """The complete sentences at the beginning of the rest."""
        found: list[str] = []
        while len(parts := _segment(self._rest, self._language)) > 1:
            if _aside_is_open(parts[0]) and len(self._rest) < LONGEST_ASIDE:
                break
            found.append(parts[0].strip())
            self._rest = "".join(parts[1:]).lstrip()
        return found

    def _cut(self) -> list[str]:
        """Cut off at least half of a rest that is too long, at white space if there is any."""
        half = LONGEST_SENTENCE // 2
        at = max(self._rest.rfind(" "), self._rest.rfind("\t"), half)
        first, self._rest = self._rest[:at].strip(), self._rest[at:].lstrip()
        self._looked = 0
        return _with_words([first])


def split_sentences(text: str, language: str | None = None) -> list[str]:
    """The sentences of a text, as SentenceStream returns them, without surrounding white space."""
    stream = SentenceStream(language)
    return stream.push(text) + stream.finish()


class TextChunker:
    """Packs sentences into chunks of at most `limit` characters, in order.

    The first sentence is a separate chunk and returned at once, for low latency. A sentence over
    the limit is cut into parts of similar length: after a clause, else between words, else between
    graphemes. White space at a cut is dropped, and so are parts without a word (`has_word`), for
    which a model would invent speech.
    """

    def __init__(self, limit: int) -> None:
        """ValueError for a limit below 1."""
        if limit < 1:
            raise ValueError(f"limit {limit}: a chunk has at least 1 character")
        self._limit = limit
        self._packed = ""
        self._first = True

    @property
    def packed(self) -> bool:
        """Whether `finish` would return a chunk."""
        return bool(self._packed)

    def push(self, sentence: str) -> list[str]:
        """The chunks that are complete with this sentence."""
        parts = _with_words(_cut_sentence(sentence.strip(), self._limit))
        if self._first:
            self._first = not parts
            return parts
        complete: list[str] = []
        for part in parts:
            together = f"{self._packed} {part}" if self._packed else part
            if len(together) <= self._limit:
                self._packed = together
            else:
                complete.append(self._packed)
                self._packed = part
        return complete

    def finish(self) -> list[str]:
        """The packed sentences that were not returned yet."""
        packed, self._packed = self._packed, ""
        return [packed] if packed else []


_WORD = regex.compile(r"[\p{L}\p{N}]")


def has_word(text: str) -> bool:
    """Whether a text has a letter or a number of any script. Punctuation, signs, emoji and markup
    alone (`---`, `+`, three backticks) have no word."""
    return _WORD.search(text) is not None


def _with_words(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if has_word(part)]


def _aside_is_open(text: str) -> bool:
    if text.count('"') % 2:
        return True
    return any(text.count(opening) > text.count(closing) for opening, closing in _ASIDES)


def _segment(text: str, language: str) -> list[str]:
    """Sentences that together are the text. Parts without a word belong to the sentence before
    them, else to the one after."""
    found: list[str] = []
    waiting = ""
    for part in sentencex.segment(language, text):
        if has_word(part):
            found.append(waiting + part)
            waiting = ""
        elif found:
            found[-1] += part
        else:
            waiting += part
    return found


_CLAUSE = regex.compile(
    r"""[.!?;:,–…)\]}»”"]+(?=\s) | — | [，、；：。！？] | \s(?=[(\[{«“])""", regex.VERBOSE
)
_SPACE = regex.compile(r"\s+")


def _cut_sentence(sentence: str, limit: int) -> list[str]:
    parts: list[str] = []
    while len(sentence) > limit:
        at = _place(sentence, limit)
        parts.append(sentence[:at].rstrip())
        sentence = sentence[at:].lstrip()
    return [*parts, sentence] if sentence else parts


def _place(sentence: str, limit: int) -> int:
    """Where to cut a sentence that is longer than `limit`: 1 to `limit`."""
    count = math.ceil(len(sentence) / limit)
    even = len(sentence) / count

    def badness(at: int) -> tuple[bool, float, int]:
        needs_another = len(sentence) - at > (count - 1) * limit
        return needs_another, abs(at - even), at

    near = sentence[: limit + 2]  # cuts are within the limit; their context is needed
    clauses = [match.end() for match in _CLAUSE.finditer(near)]
    words = [match.start() for match in _SPACE.finditer(near)]
    graphemes = [match.end() for match in regex.finditer(r"\X", near)]
    # Avoid very short halves if another cut is possible, but prefer them to half a word.
    last = min(float(limit), len(sentence) - even / 2)
    for places, least, most in (
        (clauses, even / 2, last),
        (words, even / 2, last),
        (words, 1, limit),
        (graphemes, 1, limit),
    ):
        if possible := [at for at in places if least <= at <= most]:
            best: int = min(possible, key=badness)
            return best
    return limit  # a single grapheme with more combining marks than the limit
