"""Recordings with one speaker per channel, such as calls: duplicate channels and crosstalk.

Owns the comparison of channels by their levels. A copy of another channel is dropped, and speech
that is much louder on another channel is crosstalk from there. Reads no audio.

Shapes: s steps of 10 ms.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sheen.prepare.cutting.cut import FLOOR, STEP_S, Levels, Segment

ALIKE = 0.02
"""Two channels are copies if the sum of their level differences is less than this share of the sum
of their levels, as for a mono recording encoded as stereo, or a channel that is the inverse of the
other. For two people who take turns the share is nearly 1."""
CROSSTALK_DB = 12.0
"""Speech that is louder by this much on another channel is crosstalk. Crosstalk is weaker by 20 dB
or more with a headset and by 10 to 20 dB with a loudspeaker; two people who speak at once differ by
less, unless one of them is hardly audible."""


def distinct(levels: Sequence[Levels]) -> list[int]:
    """The channels that are not copies of earlier ones."""
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
    """Level of the loudest other channel relative to a segment's own during its speech, dB; None
    without another channel.

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
