"""Subtitles, .srt and .vtt: their cues, and whether they are in step with the sound.

Owns what of a cue is spoken: no markup, no notes on sounds, no line that is only shown on. Package
pysubs2 reads the two formats. Cues say when a text is to be read, not when it is spoken: they place
no cut, and their text goes to the segments by its words (`sheen.prepare.alignment`).
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.data.schema import iter_lines

SUFFIXES = (".srt", ".vtt")
INSTALL = "pip install 'sheen[subtitles]'"
RATES = (1.0, 25 / 23.976, 23.976 / 25, 24 / 23.976, 23.976 / 24, 25 / 24, 24 / 25)
"""What subtitles' seconds are multiplied by that were made for a film at another frame rate."""
STEP_S = 0.5
"""Nine words in ten must be nearer to their cue's time, once it is shifted."""

_SPEAKER = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_NOTE = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫#][^♪♫#]*[♪♫#]|[♪♫]")
_MARK = re.compile(r"^\s*[-–—](?=\s)|>>+")
"""Of another speaker."""


@dataclass(frozen=True)
class Cue:
    """Seconds, and what is spoken. `speaker`: of WebVTT's <v NAME>."""

    start: float
    end: float
    text: str
    speaker: str | None = None


def read_subtitles(location: str) -> list[Cue]:
    """The cues in order of time, but those without words. ValueError naming the file."""
    lines = [line for _, line in iter_lines(location)]
    suffix = PurePosixPath(location.partition("?")[0]).suffix.lower()
    try:
        import pysubs2
    except ImportError as error:
        raise ValueError(f"{location}: subtitles need package pysubs2: {INSTALL}") from error
    try:
        # Without blanks in otherwise empty lines, which end a cue.
        file: Any = pysubs2.SSAFile.from_string(
            "\n".join(line.rstrip() for line in lines),
            format_=suffix.removeprefix("."),
            keep_unknown_html_tags=True,
        )
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise ValueError(f"{location}: no {suffix} subtitles ({error})") from error
    if not len(file):
        raise ValueError(f"{location}: it holds no cue (00:00:01,000 --> 00:00:02,000)")
    file.sort()
    cues: list[Cue] = []
    shown: list[str] = []
    for event in file:
        written = event.plaintext.split("\n")
        spoken = [line for line in map(_spoken, written) if line]
        new = spoken[_repeated(shown, spoken) :]
        shown = spoken
        speakers = _SPEAKER.findall(event.plaintext)
        if new:
            said_by = html.unescape(speakers[0]).strip() if len(set(speakers)) == 1 else None
            cues.append(Cue(event.start / 1000, event.end / 1000, " ".join(new), said_by))
    return cues


def _spoken(line: str) -> str:
    """Of a cue's line what is spoken."""
    plain = html.unescape(_TAG.sub("", line))
    return " ".join(_MARK.sub(" ", _NOTE.sub(" ", plain)).split())


def _repeated(before: Sequence[str], now: Sequence[str]) -> int:
    """How many first lines were the last of the cue before: captions that roll show each twice."""
    most = min(len(before), len(now))
    return next(
        (count for count in range(most, 0, -1) if list(before[-count:]) == list(now[:count])), 0
    )


def joined_text(cues: Sequence[Cue]) -> str:
    """The text of all cues: a sentence may go on over several."""
    return " ".join(cue.text for cue in cues)


@dataclass(frozen=True)
class Step:
    """Seconds of the sound are `rate` times those of the subtitles, and `shift_s` more."""

    rate: float
    shift_s: float
    error_s: float
    """What nine words in ten are off by at most, once shifted."""

    @property
    def in_step(self) -> bool:
        return self.error_s <= STEP_S


def find_step(cue_s: NDArray[np.float64], heard_s: NDArray[np.float64]) -> Step:
    """By words that are in both: when the cue has each, and when it was heard, `[n]`, n >= 1.

    Of RATES the one that explains them best; the median shift, so that some wrong words do nothing.
    """
    steps = []
    for rate in RATES:
        shifts = heard_s - rate * cue_s
        shift = float(np.median(shifts))
        error = float(np.percentile(np.abs(shifts - shift), 90))
        steps.append(Step(rate, shift, error))
    return min(steps, key=lambda step: step.error_s)
