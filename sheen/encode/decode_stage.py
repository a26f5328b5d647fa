"""The first stage of encoding: manifest rows -> PCM and spoken text, in tasks.

Owns reading, decoding, cutting, the text's spoken form and what is refused. A row that
fails gets a reason and travels on to the output: nothing is dropped on the way. Loads no codec.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa

from sheen.audio import io, silence
from sheen.audio.io import AudioError
from sheen.codec.layout import TokenLayout
from sheen.data.recordings import RecordingReader
from sheen.encode import filters
from sheen.encode.filters import Limits, Samples
from sheen.encode.output import PCM_SCHEMA, pack, unpack
from sheen.runs.attempts import Attempts
from sheen.storage import files
from sheen.text.normalization import NemoStep, load_normaliser
from sheen.text.prompt import normalise


@dataclass(frozen=True)
class DecodeSettings:
    """What is done to every recording. `layout` is for the codes that some rows bring along."""

    sample_rate: int
    limits: Limits
    layout: TokenLayout
    frame_seconds: float
    trim_db: float | None = None
    loudness_lufs: float | None = None
    normalisation: NemoStep | None = None
    """None: texts are taken as they are."""


class Rejected(Exception):
    """A row that cannot be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def decode_blocks(
    packed: pa.Table, *, settings: DecodeSettings, attempts: Attempts, limit_s: float
) -> pa.Table:
    """`decode_rows` of each block. A recording that crashes its process, or takes longer than
    `limit_s` seconds, is rejected after MAX_CRASHES attempts."""

    def limit(key: int) -> AbstractContextManager[None]:
        return attempts.limit(key, limit_s)

    def do(table: pa.Table) -> pa.Table:
        return decode_rows(table, settings, limit)

    return pack(attempts.guard("decoder", table, do) for table in unpack(packed))


def decode_rows(
    table: pa.Table,
    settings: DecodeSettings,
    limit: Callable[[int], AbstractContextManager[None]] = lambda key: nullcontext(),
) -> pa.Table:
    """MANIFEST_SCHEMA -> PCM_SCHEMA. A recording that cannot be used gets a reason and no PCM.

    Each is worked on within `limit(key)`.
    """
    rows = table.to_pylist()
    clips = _Clips(_reader(), settings)
    for row in rows:
        row |= {"pcm": None, "seconds": None}
        clips.times = {"read_s": 0.0, "decode_s": 0.0, "resample_s": 0.0}
        if row["reason"] is None:
            try:
                with limit(row["key"]):
                    if settings.normalisation is not None:
                        row["text"] = _spoken(row["text"], settings.normalisation)
                    if row["snac_codes"] is None:
                        row["pcm"] = clips.pcm(row)
                    else:
                        clips.check_codes(row)
            except Rejected as error:
                row |= {"reason": error.reason, "detail": f"{_name(row)}{error}"}
        row |= clips.times
    return pa.Table.from_pylist(rows, schema=PCM_SCHEMA)


@cache
def _reader() -> RecordingReader:
    """One for each process: its next block often lies in the same tar or row group."""
    return RecordingReader()


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['audio']}: " if row["audio"] else ""


def _spoken(text: str, normalisation: NemoStep) -> str:
    spoken = load_normaliser(normalisation)(text)
    if not spoken:
        raise Rejected("no text", f"{text!r} holds nothing that is spoken")
    return spoken


class _Clips:
    """The rows of a block, one after the other. Neighbours that are parts of one recording decode
    it once, or fail alike."""

    def __init__(self, reader: RecordingReader, settings: DecodeSettings) -> None:
        self._reader = reader
        self._settings = settings
        self._at: tuple[Any, ...] | None = None
        self._whole: tuple[Samples, int] | Rejected | None = None
        self.times: dict[str, float] = {}

    def pcm(self, row: dict[str, Any]) -> bytes:
        """Also notes the row's `seconds`. Raises Rejected."""
        what, limits = self._settings, self._settings.limits
        samples, rate = self._cut(row, *self._decoded(row))
        row["seconds"] = len(samples) / rate
        _check(filters.length_fault(row["seconds"], limits))
        _check(filters.sound_fault(samples, limits))
        started = time.perf_counter()
        samples = io.resampled(samples, rate, what.sample_rate)
        self.times["resample_s"] = time.perf_counter() - started
        if what.trim_db is not None:
            samples = silence.trim(samples, what.sample_rate, what.trim_db)
            _check(filters.length_fault(len(samples) / what.sample_rate, limits))
        _check(filters.text_fault(normalise(row["text"]), row["seconds"], limits))
        if what.loudness_lufs is not None:
            samples = silence.to_loudness(samples, what.sample_rate, what.loudness_lufs)
        return io.to_pcm16(samples).tobytes()

    def _decoded(self, row: Mapping[str, Any]) -> tuple[Samples, int]:
        at = row["audio"], row["container"], tuple(row["place"] or ())
        if at != self._at or self._whole is None:
            self._at, self._whole = at, None
            try:
                self._whole = self._decode(row)
            except Rejected as error:
                self._whole = error
        if isinstance(self._whole, Rejected):
            raise Rejected(self._whole.reason, str(self._whole))
        return self._whole

    def _decode(self, row: Mapping[str, Any]) -> tuple[Samples, int]:
        started = time.perf_counter()
        try:
            data = self._reader.read(row)
        except FileNotFoundError:
            raise Rejected("missing", "no such recording") from None
        except OSError as error:
            raise Rejected("not read", str(error)) from error
        finally:
            self.times["read_s"] = time.perf_counter() - started
        if data.startswith(files.LFS_POINTER):
            raise Rejected("missing", "a Git LFS pointer, not the recording: run `git lfs pull`")
        started = time.perf_counter()
        try:
            return io.decode(data)
        except AudioError as error:
            raise Rejected(error.reason, str(error)) from error
        finally:
            self.times["decode_s"] = time.perf_counter() - started

    def _cut(self, row: Mapping[str, Any], samples: Samples, rate: int) -> tuple[Samples, int]:
        if row["start"] is None and row["end"] is None:
            return samples, rate
        first = round((row["start"] or 0.0) * rate)
        last = len(samples) if row["end"] is None else round(row["end"] * rate)
        # A time in text has milliseconds at best.
        if first >= len(samples) or last > len(samples) + round(0.01 * rate):
            raise Rejected(
                "outside the recording",
                f"{row['start'] or 0.0:g} to {last / rate:g} s, the recording has "
                f"{len(samples) / rate:.2f} s",
            )
        return samples[first:last], rate

    def check_codes(self, row: dict[str, Any]) -> None:
        """Of a row that brings its codes. Raises Rejected."""
        codes = row["snac_codes"]
        if problem := self._settings.layout.check(codes):
            raise Rejected("bad codes", problem)
        row["seconds"] = len(codes[0]) * self._settings.frame_seconds
        limits = self._settings.limits
        _check(filters.length_fault(row["seconds"], limits))
        _check(filters.text_fault(normalise(row["text"]), row["seconds"], limits))


def _check(fault: tuple[str, str] | None) -> None:
    if fault is not None:
        raise Rejected(*fault)
