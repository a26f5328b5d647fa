"""Where a recording is cut: probabilities of speech and levels in, segments out.

Owns the rules. A segment is a stretch of speech with a little silence on both sides. Speech is cut
at pauses, longer ones first; speech without a pause is cut at its quietest place, and the segment
records that. An ASR's word times are not used: they are late by tens, sometimes hundreds, of
milliseconds (decision 0029). Reads no audio.

Shapes: f frames of 32 ms, s steps of 10 ms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.prepare.cutting.vad import FRAME, RATE, Probabilities

FRAME_S = FRAME / RATE
STEP = 160
"""Samples of a level: 10 ms."""
STEP_S = STEP / RATE
HYSTERESIS = 0.15
"""Speech ends when its probability falls this far below the threshold at which it begins; Silero's
value."""
SHORTEST_GAP_S = 0.1
"""Shorter dips of the probability are not pauses; Silero's value."""
SHORTEST_SPEECH_S = 0.1
"""Shorter speech is taken for a click."""
PAUSES_S = (0.30, 0.15)
"""Shortest pauses for cutting long speech: the first length is tried, then the second."""
JOIN_S = 1.0
"""A segment that is too short is joined with a neighbor over a pause shorter than this."""
LEFT_S, RIGHT_S = 0.15, 0.10
"""Most silence that is kept. There is more on the left, since the probability of speech lags."""
GUARD_S = 0.05
"""Least silence that is kept on the left: it may contain a soft onset."""
ONSET_S, ONSET_DB = 0.3, -30.0
"""Where a beginning would be within sound, less than ONSET_DB softer than the segment's loudest 10
ms, voice activity is late: it then begins up to this much earlier, where it is quiet."""
RELEASE_S = 0.1
"""Where sound of ONSET_DB follows an end within this, as a final "d" is released after its closure,
the segment ends where it is quiet again, if that is within this too. A breath is longer."""
QUIET_S = 0.1
"""Length of the quietest place, for a cut within speech."""
FLOOR = 1e-10
"""Mean square that counts as silence: -100 dB."""

Levels = NDArray[np.float32]
"""Mean square of each step, `[s]`."""
Span = tuple[float, float]

CUT_OFF_DB = -15.0
"""Speech whose level in the first or last CUT_OFF_S of a recording is within this of its loudest
10 ms was cut off by the recording: a natural onset or ending is softer."""
CUT_OFF_S = 0.03

PAUSE, QUIETEST = "pause", "quietest place"
EDGE, CUT_OFF = "end of the recording", "speech cut off by the recording"
"""Kinds of beginnings and ends of segments."""


@dataclass(frozen=True)
class CutSettings:
    """`pause_seconds`: a pause of this length ends a segment, unless it would be too short."""

    min_seconds: float = 2.0
    max_seconds: float = 15.0
    pause_seconds: float = 0.5
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError(
                f"--max-seconds {self.max_seconds:g} is less than twice --min-seconds "
                f"{self.min_seconds:g}: longer speech could not be cut into segments of these "
                "lengths; raise the one or lower the other"
            )


@dataclass(frozen=True)
class Segment:
    """Seconds from the recording's first sample on, whole milliseconds."""

    start: float
    end: float
    speech: float
    """Seconds of speech in it, by voice activity."""
    start_at: str
    end_at: str
    """PAUSE, QUIETEST, EDGE or CUT_OFF."""
    level_db: float
    """The loudest 10 ms, dB of full scale."""
    regions: Sequence[Sequence[float]] = ()
    """Start and end of each stretch of speech, seconds within the segment."""
    channel: int | None = None
    """Channel of the recording, from 0; None: the mean of all."""
    crosstalk_db: float | None = None
    """The loudest other channel over this one while it speaks; None without another."""

    @property
    def seconds(self) -> float:
        return self.end - self.start


class LevelMeter:
    """Samples in, in blocks of any size; the mean square of every whole step out."""

    def __init__(self) -> None:
        self._waiting = NO_SAMPLES

    def push(self, samples: Samples) -> Levels:
        waiting = np.concatenate([self._waiting, samples])
        whole = len(waiting) - len(waiting) % STEP
        self._waiting = waiting[whole:]
        levels: Levels = np.square(waiting[:whole]).reshape(-1, STEP).mean(axis=1)
        return levels


def speech_regions(probabilities: Probabilities, threshold: float) -> list[Span]:
    """Spans of speech in seconds, in order, at least SHORTEST_GAP_S apart; probabilities `[f]`.

    Speech begins at a frame that reaches the threshold and ends at one that is HYSTERESIS below.
    """
    # A frame between the two thresholds continues the state before it.
    state = np.full(len(probabilities), -1, np.int8)
    state[probabilities >= threshold] = 1
    state[probabilities < max(threshold - HYSTERESIS, 0.01)] = 0
    known = np.where(state >= 0, np.arange(len(state)), -1)
    last = np.maximum.accumulate(known) if len(known) else known
    speaking = (last >= 0) & (state[last] == 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], speaking, [False]]).astype(np.int8)))
    spans: list[Span] = []
    for first, end in edges.reshape(-1, 2) * FRAME_S:
        if spans and first - spans[-1][1] < SHORTEST_GAP_S:
            spans[-1] = (spans[-1][0], float(end))
        else:
            spans.append((float(first), float(end)))
    return [(start, end) for start, end in spans if end - start >= SHORTEST_SPEECH_S]


@dataclass(frozen=True)
class _Part:
    """Regions of speech that form one segment, and the kinds of its beginning and end."""

    regions: tuple[Span, ...]
    start_at: str = PAUSE
    end_at: str = PAUSE

    @property
    def start(self) -> float:
        return self.regions[0][0]

    @property
    def end(self) -> float:
        return self.regions[-1][1]

    @property
    def seconds(self) -> float:
        return self.end - self.start


def cut(
    probabilities: Probabilities, levels: Levels, seconds: float, settings: CutSettings
) -> list[Segment]:
    """The segments of a recording of length `seconds`, in order and without overlap.

    No segment is longer than `max_seconds`. One shorter than `min_seconds` had no neighbor near
    enough to be joined with, or both were too long together.
    """
    regions = speech_regions(probabilities, settings.threshold)
    regions = [(start, min(end, seconds)) for start, end in regions if start < seconds]
    longest = settings.max_seconds - LEFT_S - RIGHT_S
    # Without the silence that is kept, which may be none. Two halves must be as long as this.
    shortest = min(settings.min_seconds, longest / 2)
    parts: list[_Part] = []
    for phrase in _phrases(regions, settings.pause_seconds):
        parts += _split(phrase, levels, shortest, longest)
    parts = _join_short(parts, shortest, longest)
    return _padded(parts, levels, seconds, settings.max_seconds)


def _phrases(regions: Sequence[Span], pause: float) -> list[_Part]:
    phrases: list[list[Span]] = []
    for region in regions:
        if phrases and region[0] - phrases[-1][-1][1] < pause:
            phrases[-1].append(region)
        else:
            phrases.append([region])
    return [_Part(tuple(phrase)) for phrase in phrases]


def _split(part: _Part, levels: Levels, shortest: float, longest: float) -> list[_Part]:
    """Parts of at most `longest` seconds."""
    done: list[_Part] = []
    while part.seconds > longest:
        first = part.start + shortest
        last = min(part.start + longest, part.end - shortest)
        place = _pause_between(part.regions, first, last)
        if place is not None:
            left, part = (
                replace(part, regions=part.regions[:place], end_at=PAUSE),
                replace(part, regions=part.regions[place:], start_at=PAUSE),
            )
        else:
            left, part = _cut_speech(part, _quietest(levels, (first + last) / 2, last, QUIET_S))
        done.append(left)
    return [*done, part]


def _pause_between(regions: Sequence[Span], first: float, last: float) -> int | None:
    """Index of the first region of the next part: after the longest pause in the second half of
    `first` to `last` seconds, else after the last pause in the first half."""
    gaps = [
        (place, regions[place][0] - regions[place - 1][1])
        for place in range(1, len(regions))
        if first <= regions[place - 1][1] <= last
    ]
    middle = (first + last) / 2
    for least in PAUSES_S:
        fit = [(place, gap) for place, gap in gaps if gap >= least]
        late = [(place, gap) for place, gap in fit if regions[place - 1][1] >= middle]
        if late:
            return max(late, key=lambda pair: pair[1])[0]
        if fit:
            return fit[-1][0]
    return None


def _cut_speech(part: _Part, at: float) -> tuple[_Part, _Part]:
    left = [(start, min(end, at)) for start, end in part.regions if start < at]
    right = [(max(start, at), end) for start, end in part.regions if end > at]
    # The cut may fall into a short gap between regions, which then counts as a pause.
    within = left[-1][1] == right[0][0]
    kind = QUIETEST if within else PAUSE
    return (
        replace(part, regions=tuple(left), end_at=kind),
        replace(part, regions=tuple(right), start_at=kind),
    )


def _quietest(levels: Levels, first: float, last: float, length: float) -> float:
    """The middle of the quietest `length` seconds between two times."""
    begin, end = math.ceil(first / STEP_S), math.floor(last / STEP_S)
    count = max(1, round(length / STEP_S))
    part = levels[begin:end].astype(np.float64)
    if len(part) < count:
        return round((first + last) / 2, 3)
    sums = np.convolve(part, np.ones(count), "valid")
    return round((begin + int(sums.argmin()) + count / 2) * STEP_S, 3)


def _join_short(parts: Sequence[_Part], shortest: float, longest: float) -> list[_Part]:
    """Join parts that are too short with the nearer neighbor, if the result is not too long."""
    joined = list(parts)
    place = 0
    while place < len(joined):
        part = joined[place]
        choices = []
        if part.seconds < shortest:
            for left in (place - 1, place):
                if 0 <= left < len(joined) - 1:
                    gap = joined[left + 1].start - joined[left].end
                    whole = joined[left + 1].end - joined[left].start
                    if gap < JOIN_S and whole <= longest:
                        choices.append((gap, left))
        if not choices:
            place += 1
            continue
        _, left = min(choices)
        before, after = joined[left], joined[left + 1]
        joined[left : left + 2] = [
            _Part(before.regions + after.regions, before.start_at, after.end_at)
        ]
        place = left
    return joined


def _padded(
    parts: Sequence[_Part], levels: Levels, seconds: float, longest: float
) -> list[Segment]:
    segments = []
    for place, part in enumerate(parts):
        start, end = part.start, part.end
        start_at, end_at = part.start_at, part.end_at
        if start_at != QUIETEST:
            before = parts[place - 1].end if place else None
            lowest = 0.0 if before is None else (before + start) / 2
            if before is None and start <= FRAME_S:
                start_at = EDGE
            start = _pad(levels, max(lowest, start - LEFT_S), start - GUARD_S, late=False)
            lowest = max(lowest, end + RIGHT_S - longest)
            start = _before_onset(levels, lowest, start, end)
        if end_at != QUIETEST:
            after = parts[place + 1].start if place + 1 < len(parts) else None
            highest = seconds if after is None else (end + after) / 2
            if after is None and end >= seconds - FRAME_S:
                end_at = EDGE
            end = _pad(levels, end, min(highest, end + RIGHT_S), late=True)
            end = _after_release(levels, start, end, min(highest, start + longest))
        start, end = round(start, 3), math.floor(end * 1000 + 1e-6) / 1000
        within = levels[int(start / STEP_S) : math.ceil(end / STEP_S)]
        loudest = within.max(initial=0.0)
        near = max(1, round(CUT_OFF_S / STEP_S))
        least = loudest * 10 ** (CUT_OFF_DB / 10)
        if start_at == EDGE and start < FRAME_S and within[:near].max(initial=0.0) > least:
            start_at = CUT_OFF
        if end_at == EDGE and end > seconds - FRAME_S and within[-near:].max(initial=0.0) > least:
            end_at = CUT_OFF
        segments.append(
            Segment(
                start=start,
                end=end,
                speech=round(sum(last - first for first, last in part.regions), 3),
                start_at=start_at,
                end_at=end_at,
                level_db=round(10 * math.log10(max(float(loudest), FLOOR)), 1),
                regions=[
                    (round(first - start, 3), round(last - start, 3))
                    for first, last in part.regions
                ],
            )
        )
    return segments


def _before_onset(levels: Levels, lowest: float, start: float, end: float) -> float:
    """`start`, or where there is sound, the end of the last quiet 20 ms before it, from `lowest` on
    and within ONSET_S; `start` where there are none, as in noise."""
    first, last = math.ceil(max(lowest, start - ONSET_S) / STEP_S), math.floor(start / STEP_S)
    loudest = levels[last : math.ceil(end / STEP_S)].max(initial=0.0)
    part = levels[max(first, 0) : last + 2]
    quiet = np.flatnonzero(part[:-1] + part[1:] < 2 * loudest * 10 ** (ONSET_DB / 10))
    if len(quiet) and quiet[-1] < len(part) - 2:
        return (max(first, 0) + int(quiet[-1])) * STEP_S
    return start


def _after_release(levels: Levels, start: float, end: float, highest: float) -> float:
    """`end`, or where sound follows it at once, the end of the quiet 20 ms after the last of it, up
    to `highest` and within RELEASE_S."""
    first, last = math.ceil(end / STEP_S), math.floor(min(highest, end + RELEASE_S) / STEP_S)
    loudest = levels[math.floor(start / STEP_S) : first].max(initial=0.0)
    quiet = levels[first:last] < loudest * 10 ** (ONSET_DB / 10)
    sounding = np.flatnonzero(~quiet)
    if len(sounding) and sounding[-1] + 2 < len(quiet):
        return (first + int(sounding[-1]) + 3) * STEP_S
    return end


def _pad(levels: Levels, first: float, last: float, *, late: bool) -> float:
    """Where the padding between two times ends: at its quietest 20 ms, or at the farthest of
    several equally quiet ones. This excludes a breath."""
    if last - first < 2 * STEP_S:
        return last if late else max(first, 0.0)
    begin, end = math.ceil(first / STEP_S), math.floor(last / STEP_S)
    part = levels[begin:end]
    if len(part) < 2:
        return last if late else first
    pairs = part[:-1] + part[1:]
    if late:
        return float(begin + len(pairs) - 1 - int(pairs[::-1].argmin()) + 2) * STEP_S
    return float(begin + int(pairs.argmin())) * STEP_S
