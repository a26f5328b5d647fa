"""Delivery of a text: pause marks, tags, lexicons and SSML in, sentences and pauses out.

Owns the marks, their limits, and finding them in a text that arrives in parts, and the settings of
a request for its delivery (`Delivery`). A mark ends the sentence before it. Errors, which quote the
text: a malformed or too long pause, an unknown tag if the request refuses those, and a lexicon that
makes the text much longer. Similar brackets (`[pause]`, `[pause: sighs]`) are text. The silence
itself is `sheen.engine.chunks`'.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import regex

from sheen.text.items import DeliveryError, Item, Pause, Respelled, Style, seconds_of, unknown_tag
from sheen.text.kept import ALIAS_CLOSE, ALIAS_OPEN, TAG, clean
from sheen.text.lexicon import Lexicon, respell
from sheen.text.segmentation import SentenceStream
from sheen.text.ssml import Scope, read_ssml

MAX_PAUSE_S = 60.0
"""Longest pause; the value of Kokoro-FastAPI, which introduced the mark."""
MAX_PAUSES_S = 300.0
"""All pauses of a text together: a short request must not become hours of audio."""
MAX_ADDED_CHARACTERS = 8192
"""Most characters that a lexicon may add to a text, for the same reason."""

_MARK = regex.compile(r"\[pause:[ \t]{0,4}(?P<given>[-+.,\d][^\[\]\s]{0,40})[ \t]{0,4}\]", regex.I)
_ALIAS_MARK = regex.compile(f"([{ALIAS_OPEN}{ALIAS_CLOSE}])")


@dataclass(frozen=True)
class Delivery:
    """Settings for reading a text."""

    lexicons: tuple[Lexicon, ...] = ()
    """Lexicons; where several have an entry, the first one counts."""
    tags: tuple[str, ...] = ()
    """Tags of the model, such as `<laugh>`; lexicons do not apply to them."""
    refuse_unknown_tags: bool = False
    """Whether other `<words>` are errors; else they are text."""


@dataclass
class Budget:
    """What the texts that share it have used of MAX_PAUSES_S and MAX_ADDED_CHARACTERS."""

    paused_s: float = 0.0
    added: int = 0

    def pause(self, seconds: float, mark: str) -> None:
        """Raises DeliveryError when the pauses have become too long together."""
        self.paused_s += seconds
        if self.paused_s > MAX_PAUSES_S:
            raise DeliveryError(
                f"{mark}: with it, the pauses of this text take {self.paused_s:g} s together; at "
                f"most {MAX_PAUSES_S:g} s are allowed"
            )

    def add(self, characters: int) -> None:
        """Raises DeliveryError when lexicons have added too much."""
        self.added += characters
        if self.added > MAX_ADDED_CHARACTERS:
            raise DeliveryError(
                f"the lexicon adds more than {MAX_ADDED_CHARACTERS} characters to the text"
            )


class TextStream(Protocol):
    """Text in as it arrives, sentences out: `SentenceStream`, `DeliveryStream`."""

    def push(self, text: str) -> Sequence[Item]: ...
    def finish(self) -> Sequence[Item]: ...


class DeliveryStream:
    """As `SentenceStream`, with pause marks as separate items, and lexicons applied to sentences.

    The items depend on the text alone, not on how it is cut into parts. Not usable after a
    DeliveryError.
    """

    def __init__(
        self,
        language: str | None = None,
        delivery: Delivery | None = None,
        budget: Budget | None = None,
    ) -> None:
        """language: as for `SentenceStream`. budget: shared by the parts of a text."""
        self._sentences = SentenceStream(language)
        self._delivery = delivery or Delivery()
        self._budget = budget or Budget()
        self._rest = ""  # a mark may begin in it
        self._substituted: deque[str] = deque()
        self._in_alias = False
        self.ignored: set[str] = set()
        """Elements of an SSML document that were ignored."""

    def push(self, text: str) -> list[Item]:
        """The items that `text` completes. Raises DeliveryError."""
        return self._push(clean(text))

    def finish(self) -> list[Item]:
        """The remaining items. Raises DeliveryError."""
        rest, self._rest = self._rest, ""
        return self._read([*self._sentences.push(rest), *self._sentences.finish()])

    def document(self, ssml: str, scope: Scope) -> list[Item]:
        """The items of an SSML document, in whose text the marks are good too. Raises
        DeliveryError."""
        document = read_ssml(ssml, scope)
        self.ignored |= document.ignored
        self._substituted.extend(document.substituted)
        found: list[Item] = []
        for part in document.parts:
            if isinstance(part, Pause):
                found += self._pause(part.seconds, "<break>")
            elif isinstance(part, Style):
                found += [*self.finish(), part]
            else:
                found += self._push(part)
        return found + self.finish()

    def _push(self, text: str) -> list[Item]:
        found: list[Item] = []
        text, self._rest, start = self._rest + text, "", 0
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
                found += self._pause(seconds_of(mark["given"], mark[0]), mark[0])
                start = mark.end()
        return found + self._read(self._sentences.push(text[start:]))

    def _pause(self, seconds: float, mark: str) -> list[Item]:
        """The end of the sentence so far, and a pause."""
        if seconds > MAX_PAUSE_S:
            raise DeliveryError(
                f"{mark}: a pause of {seconds:g} s; at most {MAX_PAUSE_S:g} s are allowed"
            )
        self._budget.pause(seconds, mark)
        return [*self.finish(), Pause(seconds)]

    def _read(self, sentences: list[str]) -> list[Item]:
        """Sentences with the lexicons applied."""
        found: list[Item] = []
        for marked in sentences:
            sentence, written = self._without_aliases(marked)
            self._check_tags(sentence)
            said = respell(sentence, self._delivery.lexicons, self._delivery.tags)
            self._budget.add(max(0, len(said) - len(sentence)))
            found.append(said if said == written else Respelled(said, written))
        return found

    def _without_aliases(self, sentence: str) -> tuple[str, str]:
        """A sentence without the marks of aliases, and with what is written in their place. An
        alias may continue in the next sentence."""
        if not self._substituted and not self._in_alias:
            return sentence, sentence
        spoken: list[str] = []
        written: list[str] = []
        for part in _ALIAS_MARK.split(sentence):
            if part == ALIAS_OPEN:
                self._in_alias = True
                written.append(self._substituted.popleft())
            elif part == ALIAS_CLOSE:
                self._in_alias = False
            else:
                spoken.append(part)
                written += [] if self._in_alias else [part]
        return "".join(spoken), "".join(written)

    def _check_tags(self, sentence: str) -> None:
        if not self._delivery.refuse_unknown_tags:
            return
        for tag in TAG.findall(sentence):
            if tag not in self._delivery.tags:
                raise unknown_tag(tag, self._delivery.tags)


def deliver(
    text: str,
    language: str | None = None,
    delivery: Delivery | None = None,
    ssml: Scope | None = None,
) -> list[Item]:
    """The items of a whole text, which is an SSML document with `ssml`. Raises DeliveryError."""
    stream = DeliveryStream(language, delivery)
    if ssml is not None:
        return stream.document(text, ssml)
    return stream.push(text) + stream.finish()
