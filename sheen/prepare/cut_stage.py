"""The first stage, as Ray Data runs it: a source -> where its segments are.

A task reads its sources a block at a time, and is in need of memory for nothing but levels and
probabilities, a few megabytes of the longest recording. A source that cannot be used gets a reason.
"""

from functools import cache

import numpy as np
import pyarrow as pa

from sheen import blocks
from sheen.audio.io import AudioError
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, reasons, refuse_pointer
from sheen.data.recordings import RecordingReader
from sheen.prepare.cutting import CutSettings, LevelMeter, cut
from sheen.prepare.decoding import WHOLE, resample_blocks
from sheen.prepare.output import CUT_SCHEMA
from sheen.prepare.refusals import SILENT_DB
from sheen.prepare.vad import RATE, VoiceActivity
from sheen.runs.attempts import Attempts
from sheen.storage import files


def cut_sources(
    table: pa.Table, *, settings: CutSettings, output: str, attempts: Attempts
) -> pa.Table:
    """SOURCE_SCHEMA -> committed rows of CUT_SCHEMA; says how many, and what kept them from it."""

    def do(rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(
            [_cut(row, settings) for row in rows.to_pylist()], schema=CUT_SCHEMA
        )

    found = attempts.guard("decoder", table, do)
    fault = blocks.commit(output, found)
    return pa.table({"rows": [len(table)], "fault": pa.array([fault], pa.string())})


@cache
def _voice_activity() -> VoiceActivity:
    return VoiceActivity()


def _cut(row: dict[str, object], settings: CutSettings) -> dict[str, object]:
    row = dict.fromkeys(CUT_SCHEMA.names) | row
    if row["reason"] is None:
        try:
            with reasons():
                row |= cut_source(str(row["audio"]), settings)
        except ClipError as error:
            row |= {"reason": error.reason, "detail": str(error)}
    return row


def cut_source(location: str, settings: CutSettings) -> dict[str, object]:
    """The columns that CUT_SCHEMA adds. Raises AudioError and OSError."""
    voice, meter = _voice_activity(), LevelMeter()
    voice.reset()
    levels, probabilities = [], []
    count, fault = 0, None
    with RecordingReader().open({"audio": location, **WHOLE}) as file:
        refuse_pointer(file.read(len(files.LFS_POINTER)))
        with AudioFile(file) as audio:
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
    seconds = count / RATE
    segments = cut(np.concatenate(probabilities), np.concatenate(levels), seconds, settings)
    found: dict[str, object] = {
        "seconds": seconds,
        "sample_rate": audio.rate,
        "segments": [vars(segment) for segment in segments],
        "fault": fault,
    }
    if not segments:
        found |= {"reason": "no speech", "detail": f"{seconds:.1f} s without speech"}
        loudest = max(float(part.max(initial=0.0)) for part in levels)
        if audio.channels > 1 and loudest < 10 ** (SILENT_DB / 10):
            found["detail"] = (
                f"the mean of its {audio.channels} channels is silence; where one is the other's "
                "inverse, give a file of one of them"
            )
    return found
