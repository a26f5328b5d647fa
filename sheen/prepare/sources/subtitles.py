"""Subtitles, .srt and .vtt: their cues.

Owns the spoken part of a cue: without markup, notes on sounds, and lines repeated from the cue
before. Package pysubs2 reads the two formats. The times of cues are when a text is shown, not when
it is spoken, and are not used for cutting; `sheen.prepare.alignment` divides the text among
segments.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sheen.data.schema import iter_lines

SUFFIXES = (".srt", ".vtt")
INSTALL = "pip install 'sheen[subtitles]'"

_SPEAKER = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_NOTE = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫#][^♪♫#]*[♪♫#]|[♪♫]")
_MARK = re.compile(r"^\s*[-–—](?=\s)|>>+")
"""Marks a change of speaker."""


@dataclass(frozen=True)
class Cue:
    """Times in seconds, and the spoken text. `speaker`: NAME of WebVTT's <v NAME>."""

    start: float
    end: float
    text: str
    speaker: str | None = None


def read_subtitles(location: str) -> list[Cue]:
    """The cues with words, in order of time. ValueError naming the file."""
    lines = [line for _, line in iter_lines(location)]
    suffix = PurePosixPath(location.partition("?")[0]).suffix.lower()
    try:
        import pysubs2
    except ImportError as error:
        raise ValueError(f"{location}: subtitles need package pysubs2: {INSTALL}") from error
    try:
        # Without trailing blanks: only an empty line ends a cue.
        file: Any = pysubs2.SSAFile.from_string(
            "\n".join(line.rstrip() for line in lines),
            format_=suffix.removeprefix("."),
            keep_unknown_html_tags=True,
        )
    except (pysubs2.Pysubs2Error, ValueError) as error:
        raise ValueError(f"{location}: not valid {suffix} subtitles ({error})") from error
    if not len(file):
        raise ValueError(
            f"{location}: it has no cue, expected lines such as 00:00:01,000 --> 00:00:02,000"
        )
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
    """The spoken part of a cue's line."""
    plain = html.unescape(_TAG.sub("", line))
    return " ".join(_MARK.sub(" ", _NOTE.sub(" ", plain)).split())


def _repeated(before: Sequence[str], now: Sequence[str]) -> int:
    """How many first lines repeat the last ones of the cue before: rolling captions show each line
    twice."""
    most = min(len(before), len(now))
    return next(
        (count for count in range(most, 0, -1) if list(before[-count:]) == list(now[:count])), 0
    )


def joined_text(cues: Sequence[Cue]) -> str:
    """The text of all cues as one, since a sentence may continue over several."""
    return " ".join(cue.text for cue in cues)
