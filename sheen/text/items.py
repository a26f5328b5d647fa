"""What a text becomes before it is spoken: sentences, and what stands between them.

Owns these items, and how a duration is written. Finding them is `sheen.text.delivery`'s and
`sheen.text.ssml`'s.
"""

from dataclasses import dataclass

import regex

_DURATION = regex.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>ms|s)", regex.I)


class DeliveryError(ValueError):
    """Markup that cannot be followed; the message quotes it."""


@dataclass(frozen=True)
class Pause:
    """Silence between two sentences, beside what a voice makes at their ends."""

    seconds: float


@dataclass(frozen=True)
class Style:
    """How the sentences after it are spoken."""

    speaker: str | None
    """One of the model's voices; None for a model with one voice, which has no name."""
    rate: float = 1.0
    """Times the request's speed."""


Item = str | Pause | Style
"""A sentence, or what stands between two."""


def seconds_of(given: str, mark: str) -> float:
    """`1.5s` or `300ms` in seconds. Raises DeliveryError, which quotes `mark`."""
    found = _DURATION.fullmatch(given.strip())
    if found is None:
        raise DeliveryError(f"{mark}: expected seconds, such as 1.5s or 300ms")
    return float(found["number"]) / (1000 if found["unit"].lower() == "ms" else 1)
