"""What a recording must be like to be worth encoding.

Owns the limits and their reasons. Reads no files; the measures are of samples in -1..1.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
FULL_SCALE = 0.999
"""From here on a sample is taken for one that was cut off."""


@dataclass(frozen=True)
class Limits:
    """None leaves a limit out. Text rates are characters per second of recording."""

    min_seconds: float = 0.2
    max_seconds: float | None = 60.0
    silent_below_db: float | None = -60.0
    """dB of full scale that the loudest sample must reach."""
    max_clipped: float | None = 0.01
    """Share of samples at full scale."""
    min_text_rate: float = 1.0
    max_text_rate: float | None = 50.0


def length_fault(seconds: float, limits: Limits) -> tuple[str, str] | None:
    """A reason and what was measured, or None."""
    if seconds < limits.min_seconds:
        return "too short", f"{seconds:.3f} s, the minimum is {limits.min_seconds:g} s"
    if limits.max_seconds is not None and seconds > limits.max_seconds:
        return "too long", f"{seconds:.1f} s, the maximum is {limits.max_seconds:g} s"
    return None


def sound_fault(samples: Samples, limits: Limits) -> tuple[str, str] | None:
    """Of samples `[n]`, n >= 1."""
    level = np.abs(samples)
    loudest = 20 * math.log10(max(float(level.max()), 1e-9))
    if limits.silent_below_db is not None and loudest < limits.silent_below_db:
        return (
            "silent",
            f"the loudest sample has {loudest:.0f} dB, the minimum is {limits.silent_below_db:g}",
        )
    if limits.max_clipped is not None:
        clipped = float((level >= FULL_SCALE).mean())
        if clipped > limits.max_clipped:
            return (
                "clipped",
                f"{clipped:.1%} of the samples are at full scale, the maximum is "
                f"{limits.max_clipped:.1%}",
            )
    return None


def text_fault(text: str, seconds: float, limits: Limits) -> tuple[str, str] | None:
    """Of a text that the recording of so many seconds is said to speak."""
    least = limits.min_text_rate
    most = math.inf if limits.max_text_rate is None else limits.max_text_rate
    rate = len(text) / seconds
    if least <= rate <= most:
        return None
    return (
        "implausible speech rate",
        f"{len(text)} characters in {seconds:.2f} s are {rate:.1f} per second, expected "
        f"{least:g} to {most:g}",
    )
