"""The items of a text to be spoken: sentences, and pauses and styles between them.

Owns these items, and the notation of durations. Finding them in a text is `sheen.text.delivery`'s
and `sheen.text.ssml`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import regex

_DURATION = regex.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>ms|s)", regex.I)


class DeliveryError(ValueError):
    """Invalid markup; the message quotes it."""


@dataclass(frozen=True)
class Pause:
    """Silence between two sentences, in addition to their own."""

    seconds: float


@dataclass(frozen=True)
class Style:
    """Voice and rate of the following sentences."""

    speaker: str | None
    """One of the model's voices; None for a model with one voice, which has no name."""
    rate: float = 1.0
    """Factor of the request's speed."""


class Respelled(str):
    """A sentence that is spoken otherwise than it is `written`."""

    written: str

    def __new__(cls, spoken: str, written: str = "") -> "Respelled":
        made = super().__new__(cls, spoken)
        made.written = written
        return made


def as_written(sentence: str) -> str:
    """A sentence as its author wrote it, before lexicons and aliases."""
    return sentence.written if isinstance(sentence, Respelled) else sentence


Item = str | Pause | Style
"""A sentence, or an item between two."""


def unknown_tag(tag: str, tags: Sequence[str]) -> DeliveryError:
    """The error for a tag that is not among the model's `tags`, where a request refuses those."""
    known = f"knows {', '.join(tags)}" if tags else "knows no tags"
    return DeliveryError(f"{tag[:40]}: an unknown tag; this model {known}")


def seconds_of(given: str, mark: str) -> float:
    """`1.5s` or `300ms` in seconds. Raises DeliveryError, which quotes `mark`."""
    found = _DURATION.fullmatch(given.strip())
    if found is None:
        raise DeliveryError(f"{mark}: expected seconds, such as 1.5s or 300ms")
    return float(found["number"]) / (1000 if found["unit"].lower() == "ms" else 1)
