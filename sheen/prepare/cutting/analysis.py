"""What is measured of a recording for its cuts: levels, probabilities of speech, what is damaged.

Owns the division of a long recording into ranges, which may be measured at the same time, and their
joining. An analysis is a function of the file alone: whether its ranges are measured one after the
other or by any number of workers, it has the same bits. Knows no rules of cutting, and no Ray.

Compared with one pass over a recording, its ranges have the same length, peak and faults, and the
same levels (of AAC other noise, see decision 0030). Its probabilities differ, since the network
remembers more than WARM_S before a range: of a thousand stretches of speech, about one begins or
ends elsewhere.

Only levels and probabilities are in memory: 20 MB for ten hours.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any

import av
import numpy as np

from sheen.audio.io import AudioError
from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, refuse_pointer
from sheen.data.recordings import RecordingReader
from sheen.prepare.cutting.cut import STEP, LevelMeter, Levels
from sheen.prepare.cutting.vad import FRAME, RATE, Probabilities, VoiceActivity
from sheen.storage import files

WHOLE = {"container": None, "place": None}
"""Columns of a row whose recording is a whole file, for rows without these columns."""
WHOLE_FILE = {**WHOLE, "channel": None, "start": None, "end": None}
"""The same, of a row that is no part of its recording, and has the mean of its channels."""

Limit = Callable[[], AbstractContextManager[None]]
"""Within it a step of reading must end."""
READ_AT_ONCE = 128
"""Blocks of such a step: a few seconds of a recording."""

RANGE_S = 600
"""Seconds of a range, at least: what is decoded before it is a tenth of that."""
MOST_RANGES = 20
"""Of a recording. A seek in an MP3 reads all of its packets up to there, and so do its ranges
together ten times: a tenth of what measuring it takes."""
WARM_S = 60
"""Before a range, for the network's state. Probabilities then differ from those of one pass by 0.02
at most, after 10 s of it by 0.2, and after 170 s by 0.004 (decision 0037)."""
AFTER_S = 1
"""After a range: the resampler's filter needs some milliseconds."""
GRAIN_S = math.lcm(STEP, FRAME, RATE) // RATE
"""Ranges begin at multiples of this: at a whole step, frame and sample, of the file's too."""

Range = tuple[int, int | None]
"""Seconds from the recording's first sample on; None: its end."""


@dataclass(frozen=True)
class Analysis:
    """Of a recording or one of its channels, or of a range of it."""

    probabilities: Probabilities
    levels: Levels
    count: int
    """Samples at RATE."""
    rate: int
    """Of the file, Hz, as are its channels."""
    channels: int
    peak: float
    faults: frozenset[float]
    """Seconds of it that cannot be decoded."""
    error: tuple[str, str] | None
    """Reason and message, where nothing after `count` can be read."""

    @property
    def seconds(self) -> float:
        return self.count / RATE

    @property
    def fault(self) -> str | None:
        if self.error is not None:
            return f"it ends after {self.seconds:.2f} s: {self.error[1]}"
        if self.faults:
            return (
                f"{len(self.faults)} places cannot be decoded, the first at "
                f"{min(self.faults):.2f} s; no segment holds one"
            )
        return None


Measure = Callable[[Range], Analysis | None]
Spread = Callable[[Measure, Sequence[Range]], Iterable[Analysis | None]]
"""As `map`, which measures one after the other."""


def analyze(
    row: Mapping[str, Any],
    channel: int | None,
    limit: Limit = nullcontext,
    spread: Spread = map,
    shortest: int = RANGE_S,
) -> Analysis:
    """Of a row of SOURCE_SCHEMA. Raises AudioError and OSError, and whatever `spread` raises.

    A recording is divided where it can be opened anywhere, has a header that states its length
    (however wrong), and a part of it costs no more than its own length. `shortest`: seconds of a
    range, a multiple of GRAIN_S.
    """
    start, end = row["start"], row["end"]
    with _opened(row, channel, limit) as (audio, in_memory):
        ranges: list[Range] = []
        if start is None and end is None and audio.exact and not in_memory:
            ranges = divide(audio.stated_s or 0.0, shortest)
        found = _measure(audio, limit, start or 0.0, end) if len(ranges) < 2 else None
    if found is None:
        measure = partial(analyze_range, dict(row), channel, limit)
        found = _joined(list(spread(measure, ranges)), ranges)
    if found is None:
        with _opened(row, channel, limit) as (audio, _):
            found = _measure(audio, limit)
    if not found.count and found.error is not None:
        raise AudioError(*found.error)
    if not found.count:
        raise ClipError("outside the recording", f"it has nothing from {start or 0:g} s on")
    return found


def divide(seconds: float, shortest: int = RANGE_S) -> list[Range]:
    """The ranges of a recording that is said to be of this length; the last is its longest or
    shortest, and takes all that is there."""
    length = max(shortest, math.ceil(seconds / MOST_RANGES / GRAIN_S) * GRAIN_S)
    starts = [length * place for place in range(max(1, round(seconds / length)))]
    return list(zip(starts, [*starts[1:], None], strict=True))


def analyze_range(
    row: Mapping[str, Any], channel: int | None, limit: Limit, span: Range
) -> Analysis | None:
    """Of what is there of a range; None if it cannot be reached. Raises AudioError and OSError."""
    start, end = span
    before = min(start, WARM_S)
    with _opened(row, channel, limit) as (audio, _):
        with limit():
            if not audio.reaches(start - before):
                return None
        found = _measure(audio, limit, start - before, None if end is None else end + AFTER_S)
    count = max(0, found.count - before * RATE)
    if end is not None:
        count = min(count, (end - start) * RATE)
    first, last = before * RATE, before * RATE + count
    return Analysis(
        found.probabilities[first // FRAME : math.ceil(last / FRAME)],
        found.levels[first // STEP : last // STEP],
        count,
        found.rate,
        found.channels,
        found.peak,
        frozenset(at for at in found.faults if start <= at < (math.inf if end is None else end)),
        found.error,
    )


def _joined(parts: Sequence[Analysis | None], ranges: Sequence[Range]) -> Analysis | None:
    """Up to the first that is not there in full: the recording ends in it, sooner than its header
    says. None if one of these could not be reached, or not be read."""
    used: list[Analysis] = []
    for part, (start, end) in zip(parts, ranges, strict=True):
        if part is None:
            return None
        used.append(part)
        if end is None or part.count < (end - start) * RATE:
            break
    if used[-1].error is not None:
        return None
    return Analysis(
        np.concatenate([part.probabilities for part in used]),
        np.concatenate([part.levels for part in used]),
        sum(part.count for part in used),
        used[0].rate,
        used[0].channels,
        max(part.peak for part in used),
        frozenset().union(*(part.faults for part in used)),
        None,
    )


@contextmanager
def _opened(
    row: Mapping[str, Any], channel: int | None, limit: Limit
) -> Iterator[tuple[AudioFile, bool]]:
    """And whether all of its bytes are in memory."""
    with ExitStack() as opened:
        with limit():
            where = {"audio": row["audio"], **{name: row[name] for name in WHOLE}}
            file = opened.enter_context(RecordingReader().open(where))
            refuse_pointer(file.read(len(files.LFS_POINTER)))
            audio = opened.enter_context(AudioFile(file, channel))
        yield audio, isinstance(file, io.BytesIO)


@cache
def _voice_activity() -> VoiceActivity:
    return VoiceActivity()


def _measure(
    audio: AudioFile, limit: Limit, start: float = 0.0, end: float | None = None
) -> Analysis:
    """In one pass."""
    voice, meter = _voice_activity(), LevelMeter()
    voice.reset()
    levels, probabilities = [meter.push(NO_SAMPLES)], []
    count, peak = 0, 0.0
    fault: AudioError | None = None

    def measured(pieces: Iterator[Samples]) -> Iterator[Samples]:
        nonlocal peak
        for piece in pieces:
            peak = max(peak, float(np.abs(piece).max(initial=0.0)))
            yield piece

    try:
        read = measured(_limited(audio.blocks(start, end), limit))
        for samples in resample_blocks(read, audio.rate, RATE):
            count += len(samples)
            levels.append(meter.push(samples))
            probabilities.append(voice.push(samples))
    except AudioError as error:
        fault = error
    probabilities.append(voice.flush())
    return Analysis(
        np.concatenate(probabilities),
        np.concatenate(levels),
        count,
        audio.rate,
        audio.channels,
        peak,
        frozenset(audio.faults),
        None if fault is None else (fault.reason, str(fault)),
    )


def resample_blocks(blocks: Iterable[Samples], source_rate: int, rate: int) -> Iterator[Samples]:
    """Blocks `[n]` at another rate, by ffmpeg's resampler, which keeps its state between blocks."""
    if source_rate == rate:
        yield from blocks
        return
    resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
    for block in blocks:
        frame = av.AudioFrame.from_ndarray(block[None], "flt", "mono")
        frame.sample_rate = source_rate
        yield from (part.to_ndarray()[0] for part in resampler.resample(frame))
    yield from (part.to_ndarray()[0] for part in resampler.resample(None))


def _limited(blocks: Iterator[Samples], limit: Limit) -> Iterator[Samples]:
    """The same blocks, read READ_AT_ONCE at a time within `limit()`."""
    fault: AudioError | None = None
    while fault is None:
        pieces: list[Samples] = []
        with limit():
            try:
                for piece in islice(blocks, READ_AT_ONCE):
                    pieces.append(piece)
            except AudioError as error:  # what came before it counts
                fault = error
        yield from pieces
        if not pieces:
            break
    if fault is not None:
        raise fault
