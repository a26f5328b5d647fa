"""How a text is to be spoken: marks in it and a lexicon -> sentences, and pauses between them.

Owns the marks, their limits, and finding them in a text that arrives in parts; and what a request
may say about delivery beside its text (`Delivery`). A mark ends the sentence before it. Refuses, by
its own text, a pause that is no duration or too long, and a lexicon that makes a text many times as
long. What only looks like a mark (`[pause]`, `[pause: sighs]`) is text. How long a pause sounds is
`sheen.engine.chunks`'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from sheen.text.kept import clean
from sheen.text.lexicon import Lexicon, respell
from sheen.text.segmentation import SentenceStream

MAX_PAUSE_S = 60.0
"""Of one pause, unless a server allows more or less. Kokoro-FastAPI, whose mark it is, has it."""
MAX_PAUSES_S = 300.0
"""Of all pauses of a text together: a short request must not become hours of audio."""
MAX_ADDED_CHARACTERS = 8192
"""That a lexicon may make a text longer by, for the same reason."""

_MARK = regex.compile(r"\[pause:[ \t]{0,4}(?P<given>[-+.,\d][^\[\]\s]{0,40})[ \t]{0,4}\]", regex.I)
_DURATION = regex.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>ms|s)", regex.I)


class DeliveryError(ValueError):
    """A mark that cannot be followed; the message quotes it."""


@dataclass(frozen=True)
class Pause:
    """Silence between two sentences, beside what a voice makes at their ends."""

    seconds: float


Item = str | Pause
"""A sentence, or what stands between two."""


@dataclass(frozen=True)
class Delivery:
    """What a text may ask for, and how words in it are said."""

    max_pause_s: float = MAX_PAUSE_S
    """Of one pause."""
    lexicons: tuple[Lexicon, ...] = ()
    """The first one that has an entry counts."""


class TextStream(Protocol):
    """Text in as it arrives, sentences out: `SentenceStream`, `DeliveryStream`."""

    def push(self, text: str) -> Sequence[Item]: ...
    def finish(self) -> Sequence[Item]: ...


class DeliveryStream:
    """As `SentenceStream`, with the marks in the text as items of their own.

    What comes out depends on the text alone, however it is cut into parts.
    """

    def __init__(self, language: str | None = None, delivery: Delivery | None = None) -> None:
        """language: as for `SentenceStream`."""
        self._sentences = SentenceStream(language)
        self._delivery = delivery or Delivery()
        self._paused_s = 0.0
        self._added = 0
        self._rest = ""  # a mark may begin in it

    def push(self, text: str) -> list[Item]:
        """The items that `text` completes. Raises DeliveryError, after which it has no use."""
        found: list[Item] = []
        text, self._rest, start = self._rest + clean(text), "", 0
        while (at := text.find("[", start)) >= 0:
            found += self._read(self._sentences.push(text[start:at]))
            mark = _MARK.match(text, at, partial=True)
            if mark is not None and mark.partial:
                self._rest = text[at:]
                return found
            if mark is None:
                found += self._read(self._sentences.push("["))
                start = at + 1
            else:
                found += self.pause(seconds_of(mark["given"], mark[0]), mark[0])
                start = mark.end()
        return found + self._read(self._sentences.push(text[start:]))

    def _read(self, sentences: list[str]) -> list[Item]:
        """Sentences as they are to be said."""
        found: list[Item] = []
        for sentence in sentences:
            said = respell(sentence, self._delivery.lexicons)
            self._added += max(0, len(said) - len(sentence))
            if self._added > MAX_ADDED_CHARACTERS:
                raise DeliveryError(
                    f"the lexicon makes the text longer by more than {MAX_ADDED_CHARACTERS} "
                    "characters"
                )
            found.append(said)
        return found

    def pause(self, seconds: float, mark: str) -> list[Item]:
        """The end of the sentence so far, and a pause. Raises DeliveryError, which quotes `mark`,
        for one that is too long."""
        most = self._delivery.max_pause_s
        if seconds > most:
            raise DeliveryError(f"{mark}: {seconds:g} s; a pause may last {most:g} s at most")
        self._paused_s += seconds
        if self._paused_s > MAX_PAUSES_S:
            raise DeliveryError(
                f"{mark}: with it the pauses of this text take {self._paused_s:g} s together; "
                f"{MAX_PAUSES_S:g} s are allowed"
            )
        return [*self._read(self._sentences.finish()), Pause(seconds)]

    def finish(self) -> list[Item]:
        """What is left."""
        rest, self._rest = self._rest, ""
        return self._read([*self._sentences.push(rest), *self._sentences.finish()])


def deliver(text: str, language: str | None = None, delivery: Delivery | None = None) -> list[Item]:
    """The items of a whole text. Raises DeliveryError."""
    stream = DeliveryStream(language, delivery)
    return stream.push(text) + stream.finish()


def seconds_of(given: str, mark: str) -> float:
    """`1.5s` or `300ms` in seconds. Raises DeliveryError, which quotes `mark`."""
    found = _DURATION.fullmatch(given)
    if found is None:
        raise DeliveryError(f"{mark}: expected seconds, such as [pause:1.5s] or [pause:300ms]")
    return float(found["number"]) / (1000 if found["unit"].lower() == "ms" else 1)
