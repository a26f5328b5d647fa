"""Reading recordings: blocks at one sample rate, and the samples of rows.

Owns the resampling of a stream. Seeking to a segment is `sheen.audio.stream`'s.

Shapes: n samples.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import av

from sheen.audio.io import resampled
from sheen.audio.samples import NO_SAMPLES, Samples
from sheen.data.clips import ClipError, ClipReader
from sheen.data.recordings import in_recording_order
from sheen.runs.attempts import is_crash

WHOLE = {"container": None, "place": None}
"""Columns of a row whose recording is a whole file, for rows without these columns."""
WHOLE_FILE = {**WHOLE, "channel": None, "start": None, "end": None}
"""The same, of a row that is no part of its recording, and has the mean of its channels."""


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


def read_part(reader: ClipReader, row: Mapping[str, Any], rate: int) -> Samples:
    """The samples of a row with `audio`, `start` and `end`; fewer if the recording ends before.
    Raises ClipError."""
    samples, source_rate = reader.read({**WHOLE, **row}, strict=False)
    return resampled(samples, source_rate, rate)


def read_rows(rows: Sequence[Mapping[str, Any]], rate: int) -> list[Samples]:
    """The samples of rows, in the order given; empty for a row that can no longer be read, and for
    one that ended a worker: this may be the driver's process."""
    reader = ClipReader()
    found: dict[int, Samples] = {}
    for place in in_recording_order([{**WHOLE, **row} for row in rows]):
        if is_crash(rows[place].get("reason")):
            found[place] = NO_SAMPLES
            continue
        try:
            found[place] = read_part(reader, rows[place], rate)
        except ClipError:
            found[place] = NO_SAMPLES
    return [found[place] for place in range(len(rows))]
