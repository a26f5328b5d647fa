"""What of a file of subtitles is spoken: without markup, notes on sounds, and lines repeated from
the cue before.

Package pysubs2 reads the files. The times of cues are when a text is shown, not when it is spoken,
and are not used for cutting.
"""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sheen.data.schema import iter_lines

INSTALL_SUBTITLES = "pip install 'sheen[subtitles]'"
_SPEAKER = re.compile(r"<v(?:\.[^ >]*)?\s+([^>]+)>")
_TAG = re.compile(r"</?\w[^>]*>|\{\\[^}]*\}")
_NOTE = re.compile(
    r"\[[^\]]*\]|\([^)]*\)|[♪♫][^♪♫]*[♪♫]|[♪♫]|^\s*#[^#]*#\s*$|(?<!\S)#\s[^#]*\s#(?!\S)"
)
"""Of a sound. Two `#` around a song are not those of "#1 and #2" or "C# and F#"."""
_TIMES = re.compile(r"\s*\d[\d:.,]*\s*-+>\s*\d")
"""The line of a cue's times, whatever is wrong with it."""
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
        from pysubs2.formats import get_format_class
    except ImportError as error:
        raise ValueError(
            f"{location}: subtitles need package pysubs2: {INSTALL_SUBTITLES}"
        ) from error
    reader: Any = get_format_class(suffix.removeprefix("."))
    times = [len(reader.TIMESTAMP.findall(line)) == 2 for line in lines]
    for number, (line, parsed) in enumerate(zip(lines, times, strict=True), start=1):
        if not parsed and any(times) and _TIMES.match(line):
            raise ValueError(
                f"{location}: line {number}: expected the times of a cue, such as "
                f"00:00:01,000 --> 00:00:02,000 (in .vtt 00:01.000), not {line[:60]!r}"
            )
    try:
        file: Any = pysubs2.SSAFile.from_string(
            "\n".join(_numbered(lines, times, suffix == ".vtt")),
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


def _numbered(lines: Sequence[str], times: Sequence[bool], vtt: bool) -> list[str]:
    """The lines with a number behind each cue, for pysubs2, which takes a number there for the next
    cue's and drops it. `times`: which lines are those of a cue's times.

    In WebVTT an empty line ends a cue, and what follows is a name of the next or a note. In SubRip
    a text may have empty lines.
    """
    before = lines[: times.index(True)] if True in times else []
    last = next((line.strip() for line in reversed(before) if line.strip()), "")
    has_numbers = last.isdecimal() and not vtt
    found: list[str] = []
    ended = False
    for line, is_time in zip(lines, times, strict=True):
        if is_time:
            found += [line] if has_numbers else ["", "0", line]
        elif not (ended or (vtt and not line)):
            found.append(line.rstrip())
        ended = vtt and not is_time and (ended or not line)
    return [*found, "", "0"]


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
