"""The stages of encoding: manifest rows -> PCM and spoken text, in tasks; PCM -> codes, in actors.

Owns reading, decoding, trimming, text normalization, rejections, and the shifts of a recording. A
row that fails gets a reason and stays in the table, so that no row is lost. Tasks load no codec,
actors have one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray

from sheen.audio import effects, io
from sheen.audio.io import from_pcm16
from sheen.codec.layout import TokenLayout
from sheen.data.clips import ClipError, ClipReader
from sheen.data.recordings import in_recording_order
from sheen.encode.config import RecordingLimits, length_fault, sound_fault, text_fault
from sheen.encode.output import ENCODED, ENCODED_SCHEMA, PCM_SCHEMA, REJECTED, pack, unpack
from sheen.runs.attempts import Attempts
from sheen.runs.device import worker_device
from sheen.text.prompt import normalize
from sheen.text.steps import NormalizerStep, TextPipeline

if TYPE_CHECKING:
    from sheen.codec.snac import Codec


@dataclass(frozen=True)
class DecodeSettings:
    """Settings for decoding. `layout` validates rows with codes instead of recordings."""

    sample_rate: int
    limits: RecordingLimits
    layout: TokenLayout
    frame_seconds: float
    trim_db: float | None = None
    loudness_lufs: float | None = None
    normalizer: tuple[NormalizerStep, ...] = ()
    """Empty for no normalization."""
    tags: tuple[str, ...] = ()
    """Tags that are not changed by it."""


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

    Each row is processed within `limit(key)`.
    """
    rows = table.to_pylist()
    clips = _reader()
    clips.forget()
    for place in in_recording_order(rows):
        row = rows[place]
        row |= {"pcm": None, "seconds": None, "read_s": 0.0, "decode_s": 0.0, "resample_s": 0.0}
        if row["reason"] is None:
            try:
                with limit(row["key"]):
                    if settings.normalizer:
                        row["text"] = _model_input(row["text"], settings)
                    if row["snac_codes"] is None:
                        row["pcm"] = _pcm(row, clips, settings)
                    else:
                        _check_codes(row, settings)
            except (Rejected, ClipError) as error:
                row |= {"reason": error.reason, "detail": f"{_name(row)}{error}"}
    return pa.Table.from_pylist(rows, schema=PCM_SCHEMA)


@cache
def _reader() -> ClipReader:
    """One per process: the next block is often in the same recording, tar or row group."""
    return ClipReader()


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['audio']}: " if row["audio"] else ""


def _model_input(text: str, settings: DecodeSettings) -> str:
    found = TextPipeline(settings.normalizer, settings.tags)(text)
    if not found:
        raise Rejected("no text", f"{text!r} has no words to speak")
    return found


def _pcm(row: dict[str, Any], clips: ClipReader, settings: DecodeSettings) -> bytes:
    """PCM of a row; also sets its `seconds` and times. Raises Rejected and ClipError."""
    limits = settings.limits
    try:
        samples, rate = clips.read(row)
    finally:
        row |= {"read_s": clips.read_s, "decode_s": clips.decode_s}
    row["seconds"] = len(samples) / rate
    _check(length_fault(row["seconds"], limits))
    _check(sound_fault(samples, limits))
    started = time.perf_counter()
    samples = io.resampled(samples, rate, settings.sample_rate)
    row["resample_s"] = time.perf_counter() - started
    if settings.trim_db is not None:
        samples = effects.trim(samples, settings.sample_rate, settings.trim_db)
        _check(length_fault(len(samples) / settings.sample_rate, limits))
    _check(text_fault(normalize(row["text"]), row["seconds"], limits))
    if settings.loudness_lufs is not None:
        samples = effects.to_loudness(samples, settings.sample_rate, settings.loudness_lufs)
    return io.to_pcm16(samples).tobytes()


def _check_codes(row: dict[str, Any], settings: DecodeSettings) -> None:
    """Validate a row with codes. Raises Rejected."""
    codes, limits = row["snac_codes"], settings.limits
    if problem := settings.layout.check(codes):
        raise Rejected("bad codes", problem)
    row["seconds"] = len(codes[0]) * settings.frame_seconds
    _check(length_fault(row["seconds"], limits))
    _check(text_fault(normalize(row["text"]), row["seconds"], limits))


def _check(fault: tuple[str, str] | None) -> None:
    if fault is not None:
        raise Rejected(*fault)


GOLDEN = (5**0.5 - 1) / 2


def shift_samples(count: int, frame_samples: int) -> list[int]:
    """`count` different shifts within a frame, in samples, from 0 on; evenly spread for any count.

    Multiples of the golden ratio are evenly spread within a latent too, whereas equal parts of a
    frame would repeat the same few positions there.
    """
    return [round(frame_samples * (k * GOLDEN % 1.0)) for k in range(count)]


class EncodeWorker:
    """Packed blocks of PCM_SCHEMA in, of ENCODED_SCHEMA out.

    `codec` is a reference in the object store: the driver loads the codec once, and workers need
    neither its folder nor the hub. Every recording is encoded once for each of `shifts`, with that
    many samples of silence before it; ids of all but the first of these rows end in `~` and a
    number. Codes in the input are not changed. `budget`: see `Codec.encode`. A recording that
    crashes its process is rejected after a few attempts.
    """

    def __init__(
        self,
        codec: "ray.ObjectRef[Codec]",
        shifts: Sequence[int],
        budget: int,
        attempts: Attempts,
    ) -> None:
        import torch  # here, see `io.resampled`

        device = worker_device()
        # Workers fill the cores: more than one thread each would slow all of them down.
        torch.set_num_threads(1)
        self._codec = ray.get(codec).to(device)
        self._shifts = shifts
        self._budget = budget
        self._attempts = attempts
        self._name = str(ray.get_runtime_context().get_actor_id())
        self._free_since: float | None = None

    def __call__(self, packed: pa.Table) -> pa.Table:
        tables = unpack(packed)
        return pack(self._attempts.guard("encoder", table, self.encode) for table in tables)

    def encode(self, table: pa.Table) -> pa.Table:
        from torch import from_numpy

        started = time.perf_counter()
        idle = 0.0 if self._free_since is None else started - self._free_since
        rows: list[dict[str, Any]] = table.to_pylist()
        good = [row for row in rows if row["pcm"] is not None]
        waveforms = [from_pcm16(np.frombuffer(row["pcm"], "<i2")) for row in good]
        written = [row | self._kept(row) for row in rows if row["pcm"] is None]
        for place, shift in enumerate(self._shifts):
            moved = [np.pad(wave, (shift, 0)) for wave in waveforms]
            encoded = self._codec.encode([from_numpy(wave) for wave in moved], self._budget)
            for row, wave, codes in zip(good, moved, encoded, strict=True):
                new = {"n_samples": len(wave), "snac_codes": codes, "status": ENCODED}
                new["audio_seconds"] = len(wave) / self._codec.sample_rate
                if place:
                    new |= {"id": f"{row['id']}~{place}", "read_s": 0, "decode_s": 0}
                    new["resample_s"] = 0
                written.append(row | new)
        names = ENCODED_SCHEMA.names
        self._free_since = time.perf_counter()
        for row in written:
            row |= {"worker": self._name, "idle_s": 0.0, "encode_s": 0.0}
        written[0] |= {"idle_s": idle, "encode_s": self._free_since - started}
        return pa.Table.from_pylist(
            [{name: row[name] for name in names} for row in written], schema=ENCODED_SCHEMA
        )

    def _kept(self, row: dict[str, Any]) -> dict[str, Any]:
        """The output columns of a row without PCM, which is rejected or has codes."""
        if row["reason"] is not None:
            return {
                "n_samples": 0, "snac_codes": None, "status": REJECTED, "audio_seconds": 0.0
            }  # fmt: skip
        samples = len(row["snac_codes"][0]) * self._codec.frame_samples
        return {"n_samples": samples, "status": ENCODED, "audio_seconds": 0.0}
