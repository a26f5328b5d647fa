"""The first stage, as Ray Data runs it: a source -> the places of its segments.

A task reads a source in blocks of samples and keeps only levels and probabilities: a few megabytes
for the longest recording. A source that cannot be used gets a reason, and so does one that crashes
the task's process or from which nothing comes.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from sheen import blocks
from sheen.audio.io import AudioError
from sheen.audio.samples import Samples
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, reasons, refuse_pointer
from sheen.data.recordings import RecordingReader
from sheen.prepare.cutting.channels import crosstalk_db, distinct
from sheen.prepare.cutting.cut import CutSettings, LevelMeter, Levels, Segment, cut
from sheen.prepare.cutting.vad import RATE, Probabilities, VoiceActivity
from sheen.prepare.decoding import WHOLE, WHOLE_FILE, part_blocks, resample_blocks
from sheen.prepare.output import CUT_SCHEMA
from sheen.prepare.rejections.reasons import SILENT_DB
from sheen.runs.attempts import Attempts
from sheen.storage import files

Limit = Callable[[], AbstractContextManager[None]]
"""Within it a step of reading must end."""
READ_AT_ONCE = 128
"""Blocks of such a step: a few seconds of a recording."""


def cut_sources(
    table: pa.Table,
    *,
    settings: CutSettings,
    each_channel: bool,
    output: str,
    attempts: Attempts,
    limit_s: float,
) -> pa.Table:
    """SOURCE_SCHEMA -> committed rows of CUT_SCHEMA, see `blocks.commit_rows`.

    `limit_s`: for each step of reading, since a whole recording may take hours.
    """

    def do(rows: pa.Table) -> pa.Table:
        found = []
        for row in rows.to_pylist():
            limit = partial(attempts.limit, row["key"], limit_s)
            found.append(_cut(row, settings, each_channel, limit))
        return pa.Table.from_pylist(found, schema=CUT_SCHEMA)

    return blocks.commit_rows(attempts.guard("decoder", table, do), output=output)


@cache
def _voice_activity() -> VoiceActivity:
    return VoiceActivity()


def _cut(
    row: dict[str, object],
    settings: CutSettings,
    each_channel: bool = False,
    limit: Limit = nullcontext,
) -> dict[str, object]:
    row = dict.fromkeys(CUT_SCHEMA.names) | row
    if row["reason"] is None:
        try:
            with reasons():
                row |= cut_source(str(row["audio"]), settings, each_channel, limit, row)
        except ClipError as error:
            row |= {"reason": error.reason, "detail": str(error)}
    return row


@dataclass(frozen=True)
class _Analysis:
    """The analysis of a recording, or of one of its channels."""

    probabilities: Probabilities
    levels: Levels
    seconds: float
    rate: int
    channels: int
    peak: float
    fault: str | None


def cut_source(
    location: str,
    settings: CutSettings,
    each_channel: bool = False,
    limit: Limit = nullcontext,
    part: Mapping[str, Any] = WHOLE_FILE,
) -> dict[str, object]:
    """The columns that CUT_SCHEMA adds. Raises AudioError and OSError.

    `each_channel`: channels are read and cut one by one, so that only one is in memory. Segments
    are in order of time. `part`: which part of the file, by a manifest row's columns; the times of
    segments count from its start.
    """
    first = _analyze(location, 0 if each_channel else part["channel"], limit, part)
    analyses = {0: first}
    if each_channel:
        others = range(1, first.channels)
        analyses |= {channel: _analyze(location, channel, limit, part) for channel in others}
    taken = distinct([one.levels for one in analyses.values()])
    segments: list[Segment] = []
    for channel in taken:
        one = analyses[channel]
        found = cut(one.probabilities, one.levels, one.seconds, settings)
        if len(taken) > 1:
            levels = {other: analyses[other].levels for other in taken}
            found = [
                replace(
                    segment, channel=channel, crosstalk_db=crosstalk_db(segment, channel, levels)
                )
                for segment in found
            ]
        elif each_channel and first.channels > 1:
            found = [replace(segment, channel=channel) for segment in found]
        segments += found
    segments.sort(key=lambda segment: (segment.start, segment.channel or 0))
    columns: dict[str, object] = {
        "seconds": first.seconds,
        "sample_rate": first.rate,
        "channels": len(taken),
        "peaks": [one.peak for one in analyses.values()],
        "segments": [vars(segment) for segment in segments],
        "fault": first.fault,
    }
    if not segments:
        columns |= {"reason": "no speech", "detail": f"{first.seconds:.1f} s without speech"}
        loudest = float(first.levels.max(initial=0.0))
        mixed = not each_channel and part["channel"] is None and first.channels > 1
        if mixed and loudest < 10 ** (SILENT_DB / 10):
            columns["detail"] = (
                f"the mean of its {first.channels} channels is silence; where one is the other's "
                "inverse, give --channels each"
            )
    return columns


def _analyze(
    location: str, channel: int | None, limit: Limit, part: Mapping[str, Any]
) -> _Analysis:
    voice, meter = _voice_activity(), LevelMeter()
    voice.reset()
    levels, probabilities = [], []
    count, peak, fault = 0, 0.0, None

    def measured(pieces: Iterator[Samples]) -> Iterator[Samples]:
        nonlocal peak
        for piece in pieces:
            peak = max(peak, float(np.abs(piece).max(initial=0.0)))
            yield piece

    with ExitStack() as opened:
        with limit():
            row = {"audio": location, **{name: part[name] for name in WHOLE}}
            file = opened.enter_context(RecordingReader().open(row))
            refuse_pointer(file.read(len(files.LFS_POINTER)))
            audio = opened.enter_context(AudioFile(file, channel))
        try:
            read = part_blocks(audio, part["start"], part["end"])
            for samples in resample_blocks(measured(_limited(read, limit)), audio.rate, RATE):
                count += len(samples)
                levels.append(meter.push(samples))
                probabilities.append(voice.push(samples))
        except AudioError as error:
            if not count:
                raise
            fault = f"it ends after {count / RATE:.2f} s: {error}"
        if not count:
            raise ClipError("outside the recording", f"it has nothing from {part['start']:g} s on")
        if fault is None and audio.faults:
            fault = (
                f"{len(audio.faults)} places cannot be decoded, the first at "
                f"{min(audio.faults):.2f} s; no segment holds one"
            )
    probabilities.append(voice.flush())
    return _Analysis(
        np.concatenate(probabilities),
        np.concatenate(levels),
        count / RATE,
        audio.rate,
        audio.channels,
        peak,
        fault,
    )


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
