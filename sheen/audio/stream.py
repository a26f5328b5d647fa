"""An open audio file: its samples from first to last, and parts of it without decoding the rest.

Owns the time axis of a recording. **Second zero is the first sample that a decoder gives**: a
frame's time is its timestamp minus the first frame's (25 ms in an MP3 by LAME). All seconds of a
recording, in manifests too, are counted so. Holds no more in memory than is asked for. Knows
nothing of manifests, nor of where files are stored.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from types import TracebackType
from typing import BinaryIO, Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from sheen.audio.io import AudioError, Mixer, audio_stream, decoding_errors, open_container
from sheen.audio.samples import NO_SAMPLES, Samples

PREROLL_S = 1.0
"""Decoded before a part and dropped. Codecs carry a state from frame to frame, MP3 the furthest: a
frame may need bits of those long before it where these are small (decision 0030)."""
GAP_S = 0.1
"""A frame whose timestamp is later than the samples before it by this much follows a silence that
was left out, as call recorders do. What is less is a timestamp's rounding. The bound is that of
ffmpeg's `aresample=async`."""
LONGEST_GAP_S = 3600.0
"""A timestamp that is later by more is a fault: the frame follows at once."""

_PCM = "pcm_"
_EXACT = {
    "wav": (_PCM,), "w64": (_PCM,), "aiff": (_PCM,), "au": (_PCM,), "caf": (_PCM,),
    "flac": ("flac",), "mp3": ("mp3",), "aac": ("aac",),
    "mov": ("aac", "alac", "mp3", "opus", "flac", _PCM),
}  # fmt: skip
"""Containers whose timestamps count samples, which Matroska's and Flash's are too coarse for, each
with beginnings of the codecs that continue from any frame of it after a preroll. Not Ogg's: after a
seek to the last page, ffmpeg counts back from an end that is already trimmed."""
_UNFORGETTING = ("aac",)
"""Codecs whose decoder keeps a state over a seek: of AAC that of the noise it fills bands with."""

Span = tuple[int, Samples]
"""Samples, and the position of their first."""


def sample_at(seconds: float, sample_rate: int) -> int:
    """The position of the sample that a second of a recording means."""
    return round(seconds * sample_rate)


class AudioFile:
    """One recording, mono float32 in -1..1 at its own rate: the mean of its channels, or one of
    them, counted from 0. For one thread at a time.

    A part is a function of the file and its bounds, whatever was read before it: a job that is
    interrupted gets the same. It costs its own length, PREROLL_S and a seek. Of a file without
    exact places to seek to, what lies before a part is decoded and dropped, so parts are best read
    in the order in which they begin.
    """

    def __init__(self, file: BinaryIO, channel: int | None = None) -> None:
        """file: what can `read` and `seek`; it is not closed. Raises AudioError as `io.decode`, and
        the file's own OSError."""
        self._file, self._channel = file, channel
        self.decoded = 0
        """Samples decoded so far, including dropped ones: the cost of reading."""
        self.samples: int | None = None
        """Samples from second zero to the end, once something has been read up to there."""
        self.faults: set[float] = set()
        """Seconds at which the file cannot be decoded, as far as it was read, such as a tag between
        joined MP3s. They become silence, and later samples keep their place."""
        self.rate: int
        """Hz."""
        self.channels: int
        """Channels of the first frame."""
        self.exact: bool
        """Whether a part costs its own length: see `_EXACT`."""
        self._open = ExitStack()
        self._held: Span | None = None
        with decoding_errors(lambda: False):
            self._restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the decoder."""
        self._open.close()

    @property
    def stated_s(self) -> float | None:
        """Seconds by the header, or estimated from the file's size; not to be relied on."""
        duration, base = self._stream.duration, self._stream.time_base
        return None if not duration or base is None else float(duration * base)

    def reaches(self, start_s: float) -> bool:
        """Whether samples from there on can be had without decoding all before them."""
        with decoding_errors(lambda: True):
            return self._from(sample_at(start_s, self.rate)) is not None

    def blocks(self, start_s: float = 0.0, end_s: float | None = None) -> Iterator[Samples]:
        """The samples between two seconds, None: to the end, in blocks `[n]` of less than two
        seconds.

        What cannot be decoded is in `faults`. Raises AudioError where nothing more can be read.
        """
        first = sample_at(start_s, self.rate)
        last = None if end_s is None else sample_at(end_s, self.rate)
        with decoding_errors(lambda: True):
            spans = self._from(first)
            if spans is None:
                spans = self._on(first)
            self._held = None
            for at, samples in spans:
                part = samples[max(0, first - at) : None if last is None else max(0, last - at)]
                if len(part):
                    yield part
                if last is not None and at + len(samples) >= last:
                    break

    def read(self, start_s: float, end_s: float | None = None, strict: bool = True) -> Samples:
        """The samples `[n]` between two seconds, fewer where the file ends before; None: its end.

        Raises AudioError where some of them cannot be decoded; if not `strict`, only where none of
        them can, else the others are what there is.
        """
        first = sample_at(start_s, self.rate)
        last = None if end_s is None else sample_at(end_s, self.rate)
        kept = [NO_SAMPLES]
        try:
            with decoding_errors(lambda: True):
                spans = self._from(first)
                if spans is not None:
                    _collect(spans, first, last, kept)
                else:
                    _collect(self._on(first), first, last, kept)
                    self._held = first, np.concatenate(kept)
            end = first + sum(map(len, kept)) if last is None else last
            for second in self.faults if strict else ():
                if first <= sample_at(second, self.rate) < end:
                    raise AudioError("unreadable", f"decoding failed at {second:.2f} s")
        except AudioError:
            if strict or len(kept) == 1:
                raise
        samples = np.concatenate(kept)
        return samples if last is None else samples[: last - first]

    def _restart(self) -> None:
        """Go to the first frame, with a new decoder."""
        self._open.close()
        self._file.seek(0)
        if not self._file.read(1):
            raise AudioError("empty", "the file has 0 bytes")
        self._file.seek(0)
        self._container: InputContainer = open_container(self._file)
        self._open.callback(self._container.close)
        self._stream = audio_stream(self._container)
        frames = self._frames(self._stream.codec_context)
        first, faulty = _first(frames)
        if first is None and faulty:
            raise AudioError("unreadable", "decoding failed: none of it can be decoded")
        if first is None:
            raise AudioError("empty", "the file holds 0 samples")
        self.rate, self.channels = first.sample_rate, first.layout.nb_channels
        self._zero = self._time(first) or Fraction(0)
        self.exact = _seeks_exactly(self._container, self._stream)
        self._spans = self._placed(first, frames)
        self._held = 0, NO_SAMPLES

    def _time(self, frame: av.AudioFrame) -> Fraction | None:
        """Seconds, as the file counts them."""
        if frame.pts is None or self._stream.time_base is None:
            return None
        return frame.pts * self._stream.time_base

    def _position(self, frame: av.AudioFrame) -> int | None:
        """Samples from second zero to a frame's first."""
        time = self._time(frame)
        return None if time is None else round((time - self._zero) * self.rate)

    def _placed(
        self, frame: av.AudioFrame | None, frames: Iterator[av.AudioFrame | None]
    ) -> Iterator[Span]:
        """The samples of frames to the file's end, without a gap: those of time are silence."""
        mixer = Mixer(self.rate, self._channel)
        at: int | None = None
        least = GAP_S * self.rate
        while frame is not None:
            position = self._position(frame)
            at = (position or 0) if at is None else at
            gap = 0 if position is None else position - at
            if least <= gap <= LONGEST_GAP_S * self.rate:
                for begun in range(0, gap, self.rate):
                    yield at + begun, np.zeros(min(self.rate, gap - begun), np.float32)
                at += gap
            for samples in mixer.mono(frame):
                if not np.isfinite(samples).all():
                    raise AudioError("unreadable", "some samples are not finite numbers")
                self.decoded += len(samples)
                yield at, samples
                at += len(samples)
            frame, faulty = _first(frames)
            least = 1 if faulty else GAP_S * self.rate
            if faulty:
                self.faults.add(at / self.rate)
        self.samples = at

    def _from(self, first: int) -> Iterator[Span] | None:
        """Spans from before a sample on, by a new decoder without state from earlier reads. None
        where the file does not say exactly where they are."""
        if not self.exact:
            return None
        before = first - sample_at(PREROLL_S, self.rate)
        if before <= 0:
            self._restart()
            return self._spans
        self._held = None
        try:
            place = self._zero + Fraction(before, self.rate)
            assert self._stream.time_base is not None  # it seeks exactly
            self._container.seek(int(place / self._stream.time_base), stream=self._stream)
            frames = self._frames(self._decoder())
            frame, _ = _first(frames)
        except av.FFmpegError:
            return None
        position = None if frame is None else self._position(frame)
        return None if position is None or position > first else self._placed(frame, frames)

    def _decoder(self) -> av.AudioCodecContext:
        """A decoder without state from earlier reads."""
        named = self._stream.codec_context
        if not named.name.startswith(_UNFORGETTING):
            return named
        decoder = av.AudioCodecContext.create(named.codec, "r")
        assert isinstance(decoder, av.AudioCodecContext)
        decoder.extradata = named.extradata
        return decoder

    def _frames(self, decoder: av.AudioCodecContext) -> Iterator[av.AudioFrame | None]:
        """From where the container is; None for what cannot be decoded."""
        for packet in self._container.demux(self._stream):
            try:
                yield from decoder.decode(packet)
            except av.error.InvalidDataError:
                yield None

    def _on(self, first: int) -> Iterator[Span]:
        """The same, decoded from the file's beginning on, or from the last part's."""
        if self._held is None or first < self._held[0]:
            self._restart()
        held, self._held = self._held, None
        assert held is not None
        return chain([held], self._spans)


def _first(frames: Iterator[av.AudioFrame | None]) -> tuple[av.AudioFrame | None, bool]:
    """The next frame, None at the end, and whether something before it could not be decoded."""
    faulty = False
    for frame in frames:
        if frame is not None:
            return frame, faulty
        faulty = True
    return None, faulty


def _collect(spans: Iterator[Span], first: int, last: int | None, kept: list[Samples]) -> None:
    """Append the samples from `first` to `last`, and those after it of the last span needed."""
    for at, samples in spans:
        if at + len(samples) > first:
            kept.append(samples[max(0, first - at) :])
        if last is not None and at + len(samples) >= last:
            break


def _seeks_exactly(container: InputContainer, stream: AudioStream) -> bool:
    codecs = [codec for name in container.format.name.split(",") for codec in _EXACT.get(name, ())]
    return bool(stream.time_base) and stream.codec_context.name.startswith(tuple(codecs))
