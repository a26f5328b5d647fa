"""Audio: any file -> one mono float32 waveform at the codec's rate, and PCM out.

Owns decoding (PyAV: every container and codec of ffmpeg), mixing to mono, resampling, 16-bit PCM
with its streaming WAV header, and whole files of it. Refuses, with a reason that a ledger can
count, what is empty, truncated or not audio, whatever the decoder raised. Knows nothing about
codecs or datasets.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO, Literal

import av
import numpy as np
import soundfile
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from sheen.audio.samples import Samples

# Containers whose header states the true length, so that a short decode means a truncated file.
# An MP3's length may be an estimate from its bit rate and proves nothing. For a WAV ffmpeg gives
# the length of what is there, so its header is read here, see `_wav_seconds_missing`.
_EXACT_LENGTH = {"wav", "w64", "flac", "aiff", "caf"}
_LENGTH_TOLERANCE_S = 0.05

UNKNOWN_SIZE = 0xFFFFFFFF
"""Value of a WAV's size fields when the length is unknown."""
# Tags are not used, so one in another encoding than UTF-8 does no harm. From PyAV 19 on, that is
# its default, and there is no such argument.
_ANY_TAGS: Any = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
# Some formats are lists of other files or of network addresses, which ffmpeg would open: strangers
# who send recordings could have files of this machine read. No protocol has this name.
_ALONE = {"protocol_whitelist": "none"}

LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000
"""Sample rates that are decoded, Hz: beyond them a header is damaged, and one of 1 Hz would make
24,000 samples of each."""
LARGEST_KERNEL = 1 << 20
"""Largest resampling filter, as the product of the reduced ratio's terms. All pairs of usual rates
are below it (11,025 to 32,000 Hz, 441:1280, is the largest); 16,001 to 24,000 Hz would be 384
million, and take gigabytes."""


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
    """`samples` `[n]` at another rate: torchaudio's windowed sinc filter at `resampling_ratio`."""
    source, target = resampling_ratio(source_rate, sample_rate)
    if source == target:
        return samples
    # Imported where it is needed: it is more than a second of a process's start, and one that only
    # reads and decodes does without it.
    import torch
    from torchaudio.functional import resample

    changed: NDArray[np.float32] = resample(torch.from_numpy(samples), source, target).numpy()
    return changed


def resampling_ratio(source_rate: int, sample_rate: int) -> tuple[int, int]:
    """Both rates reduced, as `(source, target)`; where their filter would be larger than
    LARGEST_KERNEL, the nearest ratio below it.

    The nearest is off by less than a thousandth, below two cents of pitch: 16,001 Hz is taken for
    16,000. So a number in a header does not decide what a clip costs.
    """
    ratio = Fraction(source_rate, sample_rate)
    if ratio.numerator * ratio.denominator > LARGEST_KERNEL:
        ratio = ratio.limit_denominator(math.isqrt(LARGEST_KERNEL * sample_rate // source_rate))
    return ratio.numerator, ratio.denominator


def decode(data: bytes) -> tuple[NDArray[np.float32], int]:
    """Decode a whole file's bytes to mono `[n]` in -1..1 and its own rate in Hz.

    Channels are averaged. Where the rate changes within the file, as in MP3s that were joined, all
    of it comes at the highest. Raises AudioError.
    """
    if not data:
        raise AudioError("empty", "the file has 0 bytes")
    parts: list[tuple[int, list[Samples]]] = []  # neighbors of one rate, in Hz
    declared_s, exact = 0.0, False
    with (
        decoding_errors(lambda: any(blocks for _, blocks in parts)),
        open_container(io.BytesIO(data)) as container,
    ):
        stream = audio_stream(container)
        if stream.duration and stream.time_base:
            declared_s = float(stream.duration * stream.time_base)
        exact = bool(_EXACT_LENGTH & set(container.format.name.split(",")))
        mixer = Mixer()
        for frame in container.decode(stream):
            for samples in mixer.mono(frame):
                if not parts or parts[-1][0] != frame.sample_rate:
                    parts.append((frame.sample_rate, []))
                parts[-1][1].append(samples)
    decoded = [(rate, np.concatenate(blocks)) for rate, blocks in parts if blocks]
    seconds = sum(len(samples) / rate for rate, samples in decoded)
    if not seconds:
        raise AudioError("empty", "the file holds 0 samples")
    missing_s = max(declared_s - seconds, _wav_seconds_missing(data))
    if exact and missing_s > _LENGTH_TOLERANCE_S:
        raise AudioError(
            "truncated",
            f"the header states {seconds + missing_s:.2f} s, {missing_s:.2f} s are missing",
        )
    source_rate = max(rate for rate, _ in decoded)
    samples = decoded[0][1]
    if len(decoded) > 1:
        samples = np.concatenate([resampled(part, rate, source_rate) for rate, part in decoded])
    if not np.isfinite(samples).all():
        # A float WAV can hold them, and one would spoil a whole training.
        raise AudioError("unreadable", "some samples are not finite numbers")
    return samples, source_rate


def open_container(file: BinaryIO) -> InputContainer:
    """Open what can `read` and `seek`, and nothing that its content refers to. Raises PyAV's
    errors."""
    container: InputContainer = av.open(file, "r", container_options=_ALONE, **_ANY_TAGS)
    return container


def audio_stream(container: InputContainer) -> AudioStream:
    """The first audio stream of an open file. Raises AudioError."""
    if not container.streams.audio:
        raise AudioError("unreadable", "the file holds no audio stream")
    stream = container.streams.audio[0]
    if container.format.name == "caf" and stream.codec_context.name == "alac":
        # The last packet is as long as its samples; ffmpeg would cut the padding off again.
        stream.codec_context.options = {"flags2": "skip_manual"}
    return stream


@contextmanager
def decoding_errors(begun: Callable[[], bool]) -> Iterator[None]:
    """Turns a decoder's exceptions into AudioError; `begun`: whether any samples came before."""
    try:
        yield
    except AudioError:
        raise
    except av.FFmpegError as error:
        reason = "truncated" if begun() else "unreadable"
        raise AudioError(reason, f"decoding failed: {error.strerror}") from error
    except OSError:  # of what the bytes come from
        raise
    except Exception as error:
        # Whatever a decoder raises is about this file: the jobs count it and read the next one.
        raise AudioError(
            "unreadable", f"decoding failed: {type(error).__name__}: {error}"
        ) from error


class Mixer:
    """Decoded frames to mono samples; channels are averaged, or one of them is taken."""

    def __init__(self, sample_rate: int | None = None, channel: int | None = None) -> None:
        """sample_rate: of all samples, Hz; None: each frame's own. channel: counted from 0."""
        self._rate = sample_rate
        self._channel = channel
        self._shape: tuple[object, ...] | None = None
        self._packed = av.AudioResampler(format="flt")

    def mono(self, frame: av.AudioFrame) -> Iterator[Samples]:
        """The samples of one frame. Raises AudioError for a rate out of range and a channel that
        the frame does not have."""
        # Each frame says what it is. The stream's rate is that of the frame that was looked at
        # first, and a resampler takes all for what its first one was.
        shape = (frame.sample_rate, frame.format.name, frame.layout.name)
        if self._shape != shape:
            if not LOWEST_RATE <= frame.sample_rate <= HIGHEST_RATE:
                raise AudioError(
                    "unreadable",
                    f"its header states a sample rate of {frame.sample_rate} Hz, expected "
                    f"{LOWEST_RATE} to {HIGHEST_RATE}",
                )
            self._shape = shape
            # Packed, not planar: of planar frames PyAV reads no more than 8 channels safely.
            self._packed = av.AudioResampler(format="flt", rate=self._rate)
        channels = frame.layout.nb_channels
        if self._channel is not None and self._channel >= channels:
            raise AudioError(
                "unreadable",
                f"channel {self._channel} is asked for, counted from 0, and it has {channels}",
            )
        for converted in self._packed.resample(frame):
            by_channel = np.ascontiguousarray(converted.to_ndarray().reshape(-1, channels).T)
            yield by_channel.mean(axis=0) if self._channel is None else by_channel[self._channel]


def _wav_seconds_missing(data: bytes) -> float:
    """Seconds that a WAV's data chunk states and the file lacks; 0 for other formats."""
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


PCM16_MAX = 32767.0
"""Full scale in 16-bit PCM."""


def to_pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Float samples in -1..1 to 16-bit PCM, clipped, rounded to the nearest step."""
    pcm: NDArray[np.int16] = np.rint(np.clip(samples, -1.0, 1.0) * PCM16_MAX).astype("<i2")
    return pcm


def from_pcm16(pcm: NDArray[np.int16]) -> NDArray[np.float32]:
    return pcm.astype(np.float32) / PCM16_MAX


def flac_rate(sample_rate: int) -> int:
    """The rate itself if a FLAC file can have it, else one of its whole fractions, in tens of Hz:
    above 65,535 Hz FLAC counts in tens, and 655,350 Hz is its highest."""
    rate = sample_rate // -(-sample_rate // 655_350)
    return rate if rate <= 65_535 else rate // 10 * 10


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
