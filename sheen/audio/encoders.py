"""Formats: samples -> bytes of MP3, Opus, AAC, FLAC, WAV or raw PCM, as they come.

Owns the encoders, their settings, and what a file states of itself: a stream holds back less than a
few codec frames and states an unknown length, a whole file states its own. Decoding, PCM and the
WAV header: `sheen.audio.io`. Knows nothing about responses.
"""

import io
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import av
import numpy as np

from sheen.audio.io import to_pcm16, wav_header
from sheen.audio.samples import Samples

MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
"""The formats, as the speech API names them, and what HTTP calls them."""


@dataclass(frozen=True)
class _Coding:
    """How ffmpeg writes one format."""

    container: str
    codec: Literal["libmp3lame", "libopus", "aac", "flac"]
    sample_format: str
    container_options: dict[str, str]
    codec_options: dict[str, str]
    whole_options: dict[str, str] | None = None
    """Container options of a whole file; None for those of a stream."""
    encoder_name: str | None = None
    """The name of the encoder that the file states."""


# Bit rates: ample for one voice of 12 kHz bandwidth. Opus varies its rate around the one named, and
# its pages' headers add 10 kbit/s.
_CODINGS = {
    # A Xing header states the length and the silence that the encoder adds, which a stream does not
    # know yet. Some readers take the silence off only where the header names LAME and a version. A
    # bit reservoir would make a frame depend on those before it, which a listener who joins late
    # did not receive.
    "mp3": _Coding(
        "mp3",
        "libmp3lame",
        "fltp",
        {"write_xing": "0", "id3v2_version": "0"},
        {"b": "64000", "reservoir": "0"},
        whole_options={"write_xing": "1", "id3v2_version": "0"},
        encoder_name="LAME3.100",
    ),
    # Pages of one packet (20 ms): they would else be held back for a second.
    "opus": _Coding("ogg", "libopus", "flt", {"page_duration": "1"}, {"b": "32000"}),
    # At this rate the default coder, "twoloop", costs twice as much, and what it makes of speech is
    # twice as far from the original (log mel spectrum).
    "aac": _Coding("adts", "aac", "fltp", {}, {"b": "64000", "aac_coder": "fast"}),
    # Short blocks leave earlier and cost 3 % more bytes than the default of 2,304 samples; without
    # the option the header is followed by 8 KiB of padding.
    "flac": _Coding("flac", "flac", "s16", {"metadata_header_padding": "0"}, {"frame_size": "576"}),
}


class AudioEncoder:
    """Samples in, bytes of one format out.

    `push` the samples in order, then `finish` once; what they return, put together, is the file,
    the same for every chunking (but for the random number of an Ogg stream). `close` it, whatever
    happened.

    Samples held back at 24 kHz before the first bytes of sound (headers leave at the first push),
    and what a decoder gives beyond the samples that went in:

    - pcm, wav: none; nothing.
    - flac: 576 (24 ms); nothing.
    - opus: 960 (40 ms); nothing, at 48 kHz, which is the only rate that Opus decoders know.
    - mp3: 1,152 (48 ms); 1,105 samples of silence before, up to 575 after: the delay of encoder and
      decoder and the last frame's padding, which only a whole file's header states. LAME makes the
      sound 5 % softer.
    - aac: 2,048 (85 ms); 1,024 samples before, up to 1,023 after; ADTS cannot state them.

    A stream without samples is the header alone: none for pcm, mp3 and aac, which have no header.

    What a stream's header says of its length is the format's own word for unknown: 0xFFFFFFFF in
    both of WAV's sizes, 0 in FLAC's number of samples and checksum; mp3 has no such header. A
    `whole` file leaves at `finish` alone and states its length exactly: WAV's sizes; FLAC's samples
    and MD5; mp3's frames, delay and padding, so that a decoder that knows them gives the samples
    that went in. An Ogg stream states its end in its last page, and ADTS has no length at all: the
    two are the same either way.
    """

    def __init__(self, audio_format: str, sample_rate: int, *, whole: bool = False) -> None:
        """sample_rate: of the samples, Hz. The encoded sound has the same, or, where the format
        has no such rate, the next higher one that it has (its highest, if none is higher).

        Raises ValueError for an unknown format.
        """
        if audio_format not in MEDIA_TYPES:
            raise ValueError(
                f"audio format {audio_format!r}: expected one of {', '.join(MEDIA_TYPES)}"
            )
        self._body: _Body | None = (
            _Compressed(_CODINGS[audio_format], sample_rate, whole)
            if audio_format in _CODINGS
            else _Plain(sample_rate if audio_format == "wav" else None, whole)
        )

    def push(self, samples: Samples) -> bytes:
        """The next samples `[n]`, float32 in -1..1; returns the bytes that are ready, maybe none.

        Raises RuntimeError after `finish` or `close`.
        """
        return self._open().push(samples)

    def finish(self) -> bytes:
        """The rest of the file, and the end. Raises RuntimeError after `finish` or `close`."""
        try:
            return self._open().finish()
        finally:
            self.close()

    def close(self) -> None:
        """Free the encoder; samples that it still holds back are lost. Does nothing when called
        again or after `finish`."""
        if self._body is not None:
            self._body.close()
            self._body = None

    def _open(self) -> "_Body":
        if self._body is None:
            raise RuntimeError("this AudioEncoder is finished or closed: make a new one")
        return self._body


class _Body(Protocol):
    def push(self, samples: Samples) -> bytes: ...

    def finish(self) -> bytes: ...

    def close(self) -> None: ...


class _Plain:
    """PCM, after a WAV header where there is a `wav_rate`."""

    def __init__(self, wav_rate: int | None, whole: bool) -> None:
        self._wav_rate = wav_rate
        self._kept: list[bytes] | None = [] if whole else None
        self._header = b"" if wav_rate is None or whole else wav_header(wav_rate)

    def push(self, samples: Samples) -> bytes:
        pcm = to_pcm16(samples).tobytes()
        if self._kept is not None:
            self._kept.append(pcm)
            return b""
        header, self._header = self._header, b""
        return header + pcm

    def finish(self) -> bytes:
        if self._kept is None:
            return self._header
        pcm = b"".join(self._kept)
        return pcm if self._wav_rate is None else wav_header(self._wav_rate, len(pcm) // 2) + pcm

    def close(self) -> None:
        pass


class _Sink:
    """The file that ffmpeg writes to, from which the bytes written so far are taken. It has no
    `seek`, so that ffmpeg writes a stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        return len(data)

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


class _Compressed:
    """ffmpeg's encoder and muxer."""

    def __init__(self, coding: _Coding, sample_rate: int, whole: bool) -> None:
        self._rate = sample_rate
        self._integers = coding.sample_format == "s16"
        self._pushed = 0
        # A file that ffmpeg can seek in: at the end it goes back and mends the header.
        self._sink = io.BytesIO() if whole else _Sink()
        options = (whole and coding.whole_options) or coding.container_options
        # Flushing: else ffmpeg holds up to 32 KiB back, four seconds of MP3.
        self._container = av.open(
            self._sink,
            "w",
            format=coding.container,
            container_options={"flush_packets": "1", **options},
        )
        rate = _encoder_rate(coding.codec, sample_rate)
        self._stream = self._container.add_stream(
            coding.codec, rate=rate, options=coding.codec_options
        )
        self._stream.codec_context.layout = "mono"
        self._stream.codec_context.format = coding.sample_format
        if coding.encoder_name is not None:
            self._stream.metadata["encoder"] = coding.encoder_name
        self._container.start_encoding()

    def push(self, samples: Samples) -> bytes:
        if len(samples):
            # Rounded as in PCM, so that FLAC holds the very samples of WAV.
            values = to_pcm16(samples) if self._integers else np.ascontiguousarray(samples)
            frame = av.AudioFrame.from_ndarray(
                values[None], format="s16" if self._integers else "flt", layout="mono"
            )
            frame.sample_rate = self._rate
            frame.time_base = Fraction(1, self._rate)
            frame.pts = self._pushed
            self._pushed += len(samples)
            # The stream converts the frame to its own format and rate and cuts it to its size.
            self._container.mux(self._stream.encode(frame))
        return b"" if isinstance(self._sink, io.BytesIO) else self._sink.take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        if not isinstance(self._sink, io.BytesIO):
            return self._sink.take()
        data = self._sink.getvalue()
        if self._stream.codec_context.name != "libmp3lame":
            return data
        context = self._stream.codec_context
        count = round(self._pushed * context.sample_rate / self._rate)
        return _with_mp3_padding(data, count, context.frame_size)

    def close(self) -> None:
        # Writes a trailer to the sink, which nobody reads. The encoder is freed with the last
        # reference to it: AudioEncoder's to this object.
        self._container.close()


def _with_mp3_padding(data: bytes, count: int, frame_samples: int) -> bytes:
    """An mp3 file whose header states the padding that leaves `count` samples.

    LAME ends with 576 to 1,151 samples of padding and ffmpeg states 1,105 at most: of 12 files one
    would be up to 46 samples too long. The layout is that of LAME's info tag, whose last field is
    the checksum (CRC-16/ARC) of all bytes before it.
    """
    info = data.find(b"Info")
    if info < 0:
        return data
    lame = info + 120
    frames = int.from_bytes(data[info + 8 : info + 12], "big")
    delay = int.from_bytes(data[lame + 21 : lame + 24], "big") >> 12
    padding = frames * frame_samples - delay - count
    tag = (
        data[: lame + 21] + (delay << 12 | padding).to_bytes(3, "big") + data[lame + 24 : lame + 34]
    )
    checksum = 0
    for byte in tag:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0xA001 if checksum & 1 else 0)
    return tag + checksum.to_bytes(2, "big") + data[lame + 36 :]


def _encoder_rate(codec: str, sample_rate: int) -> int:
    """The lowest rate that the encoder takes and that loses nothing; its highest, if all lose."""
    rates = av.codec.Codec(codec, "w").audio_rates
    if rates is None or sample_rate in rates:  # None: any rate
        return sample_rate
    return min((rate for rate in rates if rate > sample_rate), default=max(rates))
