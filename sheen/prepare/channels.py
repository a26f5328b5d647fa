"""Recordings with a speaker on each channel, such as calls: which channels there are, and whose
speech is whose.

Owns the comparison of channels by their levels. A channel that is another's copy is none, and
speech that is much louder on another channel is that one's, heard through a microphone or the line.
Reads no audio.

Shapes: s steps of 10 ms.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sheen.prepare.cutting import FLOOR, STEP_S, Levels, Segment

ALIKE = 0.02
"""Two channels are one if their levels differ by less than this share of both, all in all: those of
a mono recording that was encoded as stereo do, or of one that is the other's inverse. Two people,
one of whom is silent while the other speaks, differ by nearly all."""
CROSSTALK_DB = 12.0
"""Speech that is louder by this much on another channel is not this one's. A headset lets 20 dB
less and more through, a loudspeaker's echo 10 to 20; two who speak at once differ by less than
this, unless one of them is hardly heard."""


def distinct(levels: Sequence[Levels]) -> list[int]:
    """The channels that are no copies of earlier ones."""
    kept: list[int] = []
    for channel, own in enumerate(levels):
        if not any(_alike(levels[other], own) for other in kept):
            kept.append(channel)
    return kept


def _alike(one: Levels, other: Levels) -> bool:
    count = min(len(one), len(other))
    difference = np.abs(one[:count] - other[:count]).sum(dtype=np.float64)
    both = float(one[:count].sum(dtype=np.float64) + other[:count].sum(dtype=np.float64))
    return bool(difference <= ALIKE * both)


def crosstalk_db(segment: Segment, channel: int, levels: Mapping[int, Levels]) -> float | None:
    """The loudest other channel over a segment's own while that speaks, dB; None without another.

    `levels`: `[s]` of each channel.
    """
    power = {name: _power(segment, of) for name, of in levels.items()}
    own = power.pop(channel)
    if not power:
        return None
    return round(10 * math.log10(max(max(power.values()), FLOOR) / max(own, FLOOR)), 1)


def _power(segment: Segment, levels: Levels) -> float:
    spans = segment.regions or [(0.0, segment.seconds)]
    parts = [
        levels[round((segment.start + first) / STEP_S) : round((segment.start + last) / STEP_S)]
        for first, last in spans
    ]
    speech = np.concatenate(parts)
    return float(speech.mean(dtype=np.float64)) if len(speech) else 0.0
