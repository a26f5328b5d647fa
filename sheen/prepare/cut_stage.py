"""The first stage, as Ray Data runs it: a source -> where its segments are.

A task reads its sources a block at a time, and is in need of memory for nothing but levels and
probabilities, a few megabytes of the longest recording. A source that cannot be used gets a reason.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pyarrow as pa

from sheen import blocks
from sheen.audio.io import AudioError
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, reasons, refuse_pointer
from sheen.data.recordings import RecordingReader
from sheen.prepare.channels import crosstalk_db, distinct
from sheen.prepare.cutting import CutSettings, LevelMeter, Levels, Segment, cut
from sheen.prepare.decoding import WHOLE, resample_blocks
from sheen.prepare.output import CUT_SCHEMA
from sheen.prepare.refusals import SILENT_DB
from sheen.prepare.vad import RATE, Probabilities, VoiceActivity
from sheen.runs.attempts import Attempts
from sheen.storage import files


def cut_sources(
    table: pa.Table, *, settings: CutSettings, each_channel: bool, output: str, attempts: Attempts
) -> pa.Table:
    """SOURCE_SCHEMA -> committed rows of CUT_SCHEMA; says how many, and what kept them from it."""

    def do(rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(
            [_cut(row, settings, each_channel) for row in rows.to_pylist()], schema=CUT_SCHEMA
        )

    found = attempts.guard("decoder", table, do)
    fault = blocks.commit(output, found)
    return pa.table({"rows": [len(table)], "fault": pa.array([fault], pa.string())})


@cache
def _voice_activity() -> VoiceActivity:
    return VoiceActivity()


def _cut(
    row: dict[str, object], settings: CutSettings, each_channel: bool = False
) -> dict[str, object]:
    row = dict.fromkeys(CUT_SCHEMA.names) | row
    if row["reason"] is None:
        try:
            with reasons():
                row |= cut_source(str(row["audio"]), settings, each_channel)
        except ClipError as error:
            row |= {"reason": error.reason, "detail": str(error)}
    return row


@dataclass(frozen=True)
class _Heard:
    """What one reading of a recording gives."""

    probabilities: Probabilities
    levels: Levels
    seconds: float
    rate: int
    channels: int
    fault: str | None


def cut_source(
    location: str, settings: CutSettings, each_channel: bool = False
) -> dict[str, object]:
    """The columns that CUT_SCHEMA adds. Raises AudioError and OSError.

    `each_channel`: each is cut by itself, and read by itself, so that no more than one is in
    memory. Segments are in order of time.
    """
    first = _listen(location, 0 if each_channel else None)
    heard = {0: first}
    if each_channel:
        heard |= {channel: _listen(location, channel) for channel in range(1, first.channels)}
    taken = distinct([one.levels for one in heard.values()])
    segments: list[Segment] = []
    for channel in taken:
        one = heard[channel]
        found = cut(one.probabilities, one.levels, one.seconds, settings)
        if len(taken) > 1:
            levels = {other: heard[other].levels for other in taken}
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
        "segments": [vars(segment) for segment in segments],
        "fault": first.fault,
    }
    if not segments:
        columns |= {"reason": "no speech", "detail": f"{first.seconds:.1f} s without speech"}
        loudest = float(first.levels.max(initial=0.0))
        if not each_channel and first.channels > 1 and loudest < 10 ** (SILENT_DB / 10):
            columns["detail"] = (
                f"the mean of its {first.channels} channels is silence; where one is the other's "
                "inverse, give --channels each"
            )
    return columns


def _listen(location: str, channel: int | None) -> _Heard:
    voice, meter = _voice_activity(), LevelMeter()
    voice.reset()
    levels, probabilities = [], []
    count, fault = 0, None
    with RecordingReader().open({"audio": location, **WHOLE}) as file:
        refuse_pointer(file.read(len(files.LFS_POINTER)))
        with AudioFile(file, channel) as audio:
            try:
                for samples in resample_blocks(audio.blocks(), audio.rate, RATE):
                    count += len(samples)
                    levels.append(meter.push(samples))
                    probabilities.append(voice.push(samples))
            except AudioError as error:
                if not count:
                    raise
                fault = f"it ends after {count / RATE:.2f} s: {error}"
            if fault is None and audio.faults:
                fault = (
                    f"{len(audio.faults)} places cannot be decoded, the first at "
                    f"{min(audio.faults):.2f} s; no segment holds one"
                )
    probabilities.append(voice.flush())
    return _Heard(
        np.concatenate(probabilities),
        np.concatenate(levels),
        count / RATE,
        audio.rate,
        audio.channels,
        fault,
    )
