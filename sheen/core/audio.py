"""Audio: any file -> one mono float32 waveform at the codec's rate, and PCM out.

Owns decoding (PyAV: every container and codec of ffmpeg), mixing to mono, resampling, 16-bit PCM
with its streaming WAV header, and whole files of it. Refuses, with a reason that a ledger can
count, what is empty, truncated or not audio. Knows nothing about codecs or datasets.
"""

import io
import struct
from typing import Literal

import av
import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

# Containers whose header states the true length, so that a short decode means a truncated file.
# An MP3's length may be an estimate from its bit rate and proves nothing. For a WAV ffmpeg gives
# the length of what is there, so its header is read here, see `_wav_seconds_missing`.
_EXACT_LENGTH = {"wav", "w64", "flac", "aiff", "caf"}
_LENGTH_TOLERANCE_S = 0.05

UNKNOWN_SIZE = 0xFFFFFFFF
"""In a WAV's size fields."""


class AudioError(ValueError):
    """Audio that cannot be used. `reason` is one of `empty`, `truncated`, `unreadable`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def decode_audio(data: bytes, sample_rate: int) -> NDArray[np.float32]:
    """Decode a whole file's bytes to mono `[n]` at `sample_rate` (Hz), in -1..1. See `decode` and
    `resampled`. Raises AudioError."""
    samples, source_rate = decode(data)
    return resampled(samples, source_rate, sample_rate)


def resampled(
    samples: NDArray[np.float32], source_rate: int, sample_rate: int
) -> NDArray[np.float32]:
    """`samples` `[n]` at another rate: torchaudio's windowed sinc filter, whose cost grows with the
    clip and not with the square of it."""
    if source_rate == sample_rate:
        return samples
    changed: NDArray[np.float32] = resample(
        torch.from_numpy(samples), source_rate, sample_rate
    ).numpy()
    return changed


def decode(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Decode a whole file's bytes to mono `[n]` in -1..1 and its own rate in Hz.

    Channels are averaged. Raises AudioError.
    """
    if not data:
        raise AudioError("empty", "the file has 0 bytes")
    pieces: list[NDArray[np.float32]] = []
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.audio:
                raise AudioError("unreadable", "the file holds no audio stream")
            stream = container.streams.audio[0]
            source_rate = stream.rate
            planar = av.AudioResampler(format="fltp")
            for frame in container.decode(stream):
                for converted in planar.resample(frame):
                    pieces.append(converted.to_ndarray().mean(axis=0))
            declared_s = (
                float(stream.duration * stream.time_base)
                if stream.duration and stream.time_base
                else 0.0
            )
            exact = bool(_EXACT_LENGTH & set(container.format.name.split(",")))
    except av.FFmpegError as error:
        reason = "truncated" if pieces else "unreadable"
        raise AudioError(reason, f"decoding failed: {error.strerror}") from error
    samples = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    if len(samples) == 0:
        raise AudioError("empty", "the file holds 0 samples")
    missing_s = max(declared_s - len(samples) / source_rate, _wav_seconds_missing(data))
    declared_s = max(declared_s, len(samples) / source_rate + missing_s)
    if exact and missing_s > _LENGTH_TOLERANCE_S:
        raise AudioError(
            "truncated", f"the header states {declared_s:.2f} s, {missing_s:.2f} s are missing"
        )
    if not np.isfinite(samples).all():
        # A float WAV can hold them, and one would spoil a whole training.
        raise AudioError("unreadable", "some samples are not finite numbers")
    return samples, source_rate


def _wav_seconds_missing(data: bytes) -> float:
    """Seconds that a WAV's data chunk states and the file lacks; 0 for what is no WAV."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return 0.0
    at, bytes_per_second = 12, 0
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt " and at + 12 <= len(data):
            (bytes_per_second,) = struct.unpack_from("<I", data, at + 8)
        elif name == b"data":
            # Streamed WAV states 0 or a size near the largest signed or unsigned one.
            known = size < 0x7FFFFFFF - 64
            missing = size - (len(data) - at)
            return missing / bytes_per_second if known and bytes_per_second else 0.0
        at += size + size % 2
    return 0.0


def to_pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Float samples in -1..1 to 16-bit PCM, clipped, rounded to the nearest step."""
    return np.rint(np.clip(samples, -1.0, 1.0) * 32767.0).astype("<i2")


def from_pcm16(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    return pcm.astype(np.float32) / 32767.0


def encode_audio(
    samples: NDArray[np.float32], sample_rate: int, container: Literal["FLAC", "WAV"]
) -> bytes:
    """A whole file of 16-bit mono PCM from samples `[n]` in -1..1."""
    file = io.BytesIO()
    soundfile.write(file, to_pcm16(samples), sample_rate, format=container, subtype="PCM_16")
    return file.getvalue()


def wav_header(sample_rate: int, n_samples: int | None = None) -> bytes:
    """A 44-byte header for 16-bit mono PCM.

    With `n_samples=None` the length is unknown: both size fields hold their largest value, which
    readers of streamed WAV take for "until the end", as OpenAI's does.
    """
    data_bytes = UNKNOWN_SIZE if n_samples is None else 2 * n_samples
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        UNKNOWN_SIZE if n_samples is None else 36 + data_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        sample_rate,
        2 * sample_rate,
        2,
        16,
        b"data",
        data_bytes,
    )
