"""A recording of any length as mono blocks at one rate, in the order of time, and rows out of it.

Owns the resampling of what does not fit into memory. Second 0 and the parts are
`sheen.audio.stream`'s, so that a row is in encoding what it was here. What stands before a fault is
used, and the fault is told.

Shapes: n samples.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import av

from sheen.audio.io import AudioError, resampled
from sheen.audio.samples import Samples
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipReader
from sheen.data.parts import in_recording_order


class AudioStream:
    """The first audio stream of an open binary file, once from its beginning to its end.

    After the last block, `fault` says what of it could not be decoded (None: all of it was), and
    `seconds` how long it is. Raises AudioError where nothing can be decoded at all.
    """

    def __init__(self, file: Any, sample_rate: int) -> None:
        """`file`: seekable, open while blocks are read. `sample_rate`: of the blocks, Hz."""
        self._file = file
        self._rate = sample_rate
        self.source_rate = 0
        """Of the file's first frame, Hz; 0 before it was read."""
        self.channels = 0
        self.seconds = 0.0
        self.fault: str | None = None

    def __iter__(self) -> Iterator[Samples]:
        """Blocks `[n]`, each of what a packet holds. Raises AudioError."""
        given = 0
        resampler = av.AudioResampler(format="flt", layout="mono", rate=self._rate)
        with AudioFile(self._file) as audio:
            self.source_rate, self.channels = audio.rate, audio.channels
            try:
                for block in audio.blocks():
                    frame = av.AudioFrame.from_ndarray(block[None], "flt", "mono")
                    frame.sample_rate = audio.rate
                    for samples in _arrays(resampler.resample(frame)):
                        given += len(samples)
                        yield samples
                if audio.faults:
                    self.fault = (
                        f"{len(audio.faults)} places cannot be decoded, the first at "
                        f"{min(audio.faults):.2f} s"
                    )
            except AudioError as error:
                if not given:
                    raise
                why = str(error).removeprefix("decoding failed: ")
                self.fault = f"decoding failed after {given / self._rate:.2f} s: {why}"
        for samples in _arrays(resampler.resample(None)):
            given += len(samples)
            yield samples
        self.seconds = given / self._rate


def _arrays(frames: list[av.AudioFrame]) -> Iterator[Samples]:
    for frame in frames:
        samples: Samples = frame.to_ndarray()[0]
        yield samples


@cache
def _reader() -> ClipReader:
    """One for each process: its next block often lies in the same recording."""
    return ClipReader()


def read_rows(rows: Sequence[Mapping[str, Any]], sample_rate: int) -> list[Samples]:
    """The samples of rows with `audio`, `start` and `end`, in the order given; fewer where the
    recording ends or breaks off before. Raises AudioError, see `ClipError`."""
    reader = _reader()
    reader.forget()
    parts = [{"container": None, "place": None, **row} for row in rows]
    found: dict[int, Samples] = {}
    for place in in_recording_order(parts):
        samples, rate = reader.read(parts[place], strict=False)
        found[place] = resampled(samples, rate, sample_rate)
    return [found[place] for place in range(len(rows))]
