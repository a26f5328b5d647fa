"""SSML: a document -> its text, pauses, voices and tempo.

Owns the supported subset (`break`, `sub`, `phoneme`, `prosody rate`, `voice`, `p`, `s`) of W3C's
SSML 1.1. The text of other elements is spoken, and they are reported. Malformed XML is an error
with its line, and an invalid attribute one with its name. Safe for untrusted input: expat reads it
in one pass, a document type with entities is refused at once, nothing is fetched, and depth is
bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.parsers import expat

import regex

from sheen.text.items import DeliveryError, Pause, Style, seconds_of, unknown_tag
from sheen.text.kept import as_alias, clean, with_phonemes
from sheen.text.phonemes import from_ipa
from sheen.text.segmentation import has_word

MAX_DEPTH = 10
"""Deepest nesting of elements; Kokoro-FastAPI's value."""
BREAKS = {"none": 0.0, "x-weak": 0.0, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}
"""Seconds by strength of a break. SSML defines none; these are Kokoro-FastAPI's values."""
RATES = {"x-slow": 0.5, "slow": 0.64, "medium": 1.0, "default": 1.0, "fast": 1.55, "x-fast": 2.0}
"""Rates by name, as Azure documents them; SSML defines none."""
SLOWEST, FASTEST = 0.25, 4.0
"""Bounds of rate times speed."""
SILENT = ("desc", "meta", "metadata", "title")
"""Elements whose text is about the document and is not spoken."""
KNOWN = ("audio", "emphasis", "lang", "lexicon", "lookup", "mark", "say-as", "token", "w")
"""Unsupported SSML elements that are reported by name; others are reported as `other`."""

_RATE = regex.compile(r"(?P<sign>[+-])?(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<percent>%)?")
_SPACE = regex.compile(r"\s+")

Part = str | Pause | Style


@dataclass(frozen=True)
class Scope:
    """The names that a document may use, and settings of its request."""

    speaker: str | None
    """The voice of the request."""
    voices: Mapping[str, str | None]
    """Speakers by every name of a voice."""
    phonemes: bool = False
    """Whether the model was trained on phonemes; else the text inside a `phoneme` is spoken."""
    tags: tuple[str, ...] = ()
    """Tags that may be written as elements, such as `<laugh/>`."""
    speed: float = 1.0
    refuse_unknown_tags: bool = False
    """Whether elements without a namespace that are neither tags nor SSML's are errors; else they
    are reported."""


@dataclass(frozen=True)
class Document:
    """The spoken parts, in order, and the ignored elements (`ssml.emphasis`)."""

    parts: list[Part] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    substituted: list[str] = field(default_factory=list)
    """What is written where the parts have an alias (`kept.as_alias`), in order."""


def read_ssml(text: str, scope: Scope) -> Document:
    """Read a document of one `<speak>`. Raises DeliveryError."""
    return _Reader(scope).read(text)


@dataclass
class _Element:
    name: str
    style: Style
    silent: bool = False
    ph: str | None = None
    """Phonemes of the words, which are collected in `words`."""
    words: list[str] = field(default_factory=list)
    alias: str | None = None
    """Spoken instead of the words, which are collected in `words`."""


class _Reader:
    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._document = Document()
        self._open: list[_Element] = []
        self._parser = expat.ParserCreate("utf-8")
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser.EntityDeclHandler = self._refuse_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text

    def read(self, text: str) -> Document:
        try:
            self._parser.Parse(text.encode("utf-8", "replace"), True)
        except expat.ExpatError as error:
            place = f"line {error.lineno}, column {error.offset + 1}"
            raise DeliveryError(f"not XML: {expat.ErrorString(error.code)}, {place}") from error
        return self._document

    def _refuse_doctype(self, *declared: object) -> NoReturn:
        raise DeliveryError("<!DOCTYPE: a document type and its entities are not allowed in SSML")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        name = qualified.rpartition(":")[2]
        if not self._open and name != "speak":
            raise DeliveryError(f"<{name[:40]}>: expected <speak>…</speak>")
        if len(self._open) >= MAX_DEPTH:
            raise DeliveryError(f"<{name[:40]}>: elements are nested more than {MAX_DEPTH} deep")
        if self._open and self._open[-1].ph is not None:
            raise DeliveryError(f"<{name[:40]}>: a <phoneme> may contain only text")
        style = self._open[-1].style if self._open else Style(self._scope.speaker)
        element = _Element(name, style, silent=bool(self._open and self._open[-1].silent))
        self._open.append(element)
        if element.silent:
            return
        if name in ("speak", "p", "s"):
            self._put("\n")
        elif name == "break":
            self._break(attributes)
        elif name == "sub":
            element.alias, element.silent = _needed(name, attributes, "alias"), True
        elif name == "phoneme":
            self._phoneme(element, attributes)
        elif name == "prosody":
            self._prosody(element, attributes)
        elif name == "voice":
            self._voice(element, attributes)
        elif name in SILENT:
            element.silent = True
        elif (tag := f"<{name}>") in self._scope.tags:
            self._put(tag)
        elif self._scope.refuse_unknown_tags and name not in KNOWN and name == qualified:
            raise unknown_tag(tag, self._scope.tags)
        else:
            self._document.ignored.add(f"ssml.{name if name in KNOWN else 'other'}")

    def _end(self, qualified: str) -> None:
        element = self._open.pop()
        if element.alias is not None:
            self._put_alias(element.alias, " ".join("".join(element.words).split()))
        if element.silent:
            return
        if element.ph is not None:
            words = " ".join("".join(element.words).split())
            self._put(with_phonemes(words, element.ph))
        if element.name in ("speak", "p", "s"):
            self._put("\n")
        if self._open and self._open[-1].style != element.style:
            self._document.parts.append(self._open[-1].style)

    def _text(self, text: str) -> None:
        text = clean(_SPACE.sub(" ", text))  # a line break in it ends no sentence
        substituted = next((each for each in self._open if each.alias is not None), None)
        if substituted is not None:
            substituted.words.append(text)
        elif not self._open[-1].silent:
            self._put(text)

    def _put_alias(self, alias: str, written: str) -> None:
        if has_word(alias) and has_word(written):
            self._document.substituted.append(written)
            alias = as_alias(alias)
        self._put(alias)

    def _put(self, text: str) -> None:
        if self._open and self._open[-1].ph is not None:
            self._open[-1].words.append(text)
        else:
            self._document.parts.append(text)

    def _break(self, attributes: dict[str, str]) -> None:
        strength = attributes.get("strength", "medium")
        if strength not in BREAKS:
            raise DeliveryError(
                f'<break strength="{strength[:40]}">: expected one of {", ".join(BREAKS)}'
            )
        if "time" in attributes:
            given = attributes["time"][:40]
            self._document.parts.append(Pause(seconds_of(given, f'<break time="{given}">')))
        elif seconds := BREAKS[strength]:
            self._document.parts.append(Pause(seconds))

    def _phoneme(self, element: _Element, attributes: dict[str, str]) -> None:
        if (alphabet := attributes.get("alphabet", "ipa")) != "ipa":
            raise DeliveryError(f'<phoneme alphabet="{alphabet[:40]}">: expected ipa')
        given = _needed("phoneme", attributes, "ph")
        if not self._scope.phonemes:
            self._document.ignored.add("ssml.phoneme")
            return
        try:
            element.ph = from_ipa(given)
        except ValueError as error:
            raise DeliveryError(f"<phoneme>: {error}") from error

    def _prosody(self, element: _Element, attributes: dict[str, str]) -> None:
        for other in attributes.keys() - {"rate"}:
            known = other in ("pitch", "volume", "range", "contour", "duration")
            self._document.ignored.add(f"ssml.prosody.{other if known else 'other'}")
        if "rate" in attributes:
            rate = self._rate(attributes["rate"].strip(), element.style.rate)
            self._restyle(element, Style(element.style.speaker, rate))

    def _rate(self, given: str, around: float) -> float:
        mark = f'<prosody rate="{given[:40]}">'
        number = RATES.get(given)
        if number is None:
            found = _RATE.fullmatch(given)
            if found is None or (found["sign"] and not found["percent"]):
                names = ", ".join(RATES)
                raise DeliveryError(f"{mark}: expected one of {names}; or 1.2, 120%, +20%, -20%")
            number = float(found["number"]) / (100 if found["percent"] else 1)
            if found["sign"]:
                number = around * (1 + number if found["sign"] == "+" else 1 - number)
        if not SLOWEST <= number * self._scope.speed <= FASTEST:
            raise DeliveryError(
                f"{mark}: with the request's speed of {self._scope.speed:g} it is "
                f"{number * self._scope.speed:g}; expected {SLOWEST} to {FASTEST}"
            )
        return number

    def _voice(self, element: _Element, attributes: dict[str, str]) -> None:
        if "name" not in attributes:
            self._document.ignored.add("ssml.voice")
            return
        name = attributes["name"]
        if name not in self._scope.voices:
            known = ", ".join(self._scope.voices) or "one, without a name"
            raise DeliveryError(f'<voice name="{name[:100]}">: this model has: {known}')
        self._restyle(element, Style(self._scope.voices[name], element.style.rate))

    def _restyle(self, element: _Element, style: Style) -> None:
        if style != element.style:
            self._document.parts.append(style)
        element.style = style


def _needed(name: str, attributes: dict[str, str], attribute: str) -> str:
    if not attributes.get(attribute, "").strip():
        raise DeliveryError(f"<{name}>: expected the attribute {attribute}")
    return clean(_SPACE.sub(" ", attributes[attribute]))
