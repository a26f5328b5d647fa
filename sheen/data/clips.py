"""The samples of manifest rows: whole recordings, and parts of recordings by `start`, `end` and
`channel`.

Owns the recording that stays open from part to part, and the reasons of rows without samples.
Decodes whole files by `sheen.audio.io` and parts by `sheen.audio.stream`.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from sheen.audio import io
from sheen.audio.io import AudioError
from sheen.audio.samples import Samples
from sheen.audio.stream import AudioFile, sample_at
from sheen.data.recordings import RecordingReader, is_part, recording_of
from sheen.storage import files

TRANSIENT = ("missing", "not read")
"""Reasons that may be temporary: the same command of a job retries such rows."""
ROUNDING_S = 0.01
"""A row may end later than its recording by this much: times in text have milliseconds at best."""


class ClipError(AudioError):
    """A row without samples. `reason` is also `missing`, `not read` or `outside the recording`."""


class ClipReader:
    """Reads rows, for one thread at a time; cheapest in the order of `in_recording_order`.

    The recording of the last part stays open. If it could not be opened, its other parts fail with
    the same error until `forget`.
    """

    def __init__(self) -> None:
        self.read_s = self.decode_s = 0.0
        """Seconds that the last row took; a part is read while it is decoded."""
        self._recordings = RecordingReader()
        self._at: tuple[Any, ...] | None = None
        self._file: BinaryIO | None = None
        self._audio: AudioFile | None = None
        self._fault: ClipError | None = None

    def forget(self) -> None:
        """Retry a recording that could not be opened."""
        if self._fault is not None:
            self._close()

    def read(self, row: Mapping[str, Any], strict: bool = True) -> tuple[Samples, int]:
        """Mono samples `[n]`, n >= 1, and their rate in Hz. Raises ClipError.

        If not `strict`, a part that the recording does not hold in full gives the samples it has.
        """
        self.read_s = self.decode_s = 0.0
        if not is_part(row) and row.get("channel") is None:
            return self._whole(row)
        audio = self._opened(row)
        started = time.perf_counter()
        try:
            with reasons():
                return _cut(audio, row["start"] or 0.0, row["end"], strict)
        except ClipError as error:
            if error.reason == "not read":
                self._close()
            raise
        finally:
            self.decode_s = time.perf_counter() - started

    def _whole(self, row: Mapping[str, Any]) -> tuple[Samples, int]:
        started = time.perf_counter()
        with reasons():
            data = self._recordings.read(row)
            self.read_s = time.perf_counter() - started
            refuse_pointer(data)
            started = time.perf_counter()
            try:
                return io.decode(data)
            finally:
                self.decode_s = time.perf_counter() - started

    def _opened(self, row: Mapping[str, Any]) -> AudioFile:
        if self._at != (at := recording_of(row)):
            self._close()
            self._at = at
        if self._fault is not None:
            raise ClipError(self._fault.reason, str(self._fault))
        if self._audio is None:
            started = time.perf_counter()
            try:
                with reasons():
                    self._file = self._recordings.open(row)
                    refuse_pointer(self._file.read(len(files.LFS_POINTER)))
                    self._audio = AudioFile(self._file, row.get("channel"))
            except ClipError as error:
                self._fault = error
                raise
            finally:
                self.read_s = time.perf_counter() - started
        return self._audio

    def _close(self) -> None:
        if self._audio is not None:
            self._audio.close()
        if self._file is not None:
            self._file.close()
        self._at = self._file = self._audio = self._fault = None


def _cut(audio: AudioFile, start: float, end: float | None, strict: bool) -> tuple[Samples, int]:
    samples = audio.read(start, end, strict)
    wanted = 1
    if end is not None and strict:
        wanted = sample_at(end - ROUNDING_S, audio.rate) - sample_at(start, audio.rate)
    if end is not None and sample_at(start, audio.rate) >= sample_at(end, audio.rate):
        raise ClipError(
            "empty", f"there is no sample from {start:.9g} s to {end:.9g} s at {audio.rate} Hz"
        )
    if len(samples) < max(1, wanted):
        assert audio.samples is not None  # it has been read to its end
        raise ClipError(
            "outside the recording",
            f"{start:g} s to {'its end' if end is None else f'{end:g} s'}, the recording has "
            f"{audio.samples / audio.rate:.2f} s",
        )
    return samples, audio.rate


@contextmanager
def reasons() -> Iterator[None]:
    """Turns what opening and reading a recording raises into ClipError."""
    try:
        yield
    except FileNotFoundError:
        raise ClipError("missing", "no such recording") from None
    except AudioError as error:
        raise ClipError(error.reason, str(error)) from error
    except OSError as error:
        raise ClipError("not read", str(error)) from error


def refuse_pointer(data: bytes) -> None:
    """`data`: a recording's first bytes, LFS_POINTER's length at least. Raises ClipError."""
    if data.startswith(files.LFS_POINTER):
        raise ClipError("missing", "a Git LFS pointer, not the recording: run `git lfs pull`")
