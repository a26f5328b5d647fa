"""From bytes of a format and when they came to samples and when they could be played.

Owns what of a stream is playable at each moment: of pcm and wav every whole sample; of the others
every packet whose last byte has come (in Ogg, the last of its page), since a decoder can do nothing
with part of one. Decoding starts when the stream is over, with the times known.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

DEMUXERS = {"mp3": "mp3", "opus": "ogg", "aac": "aac", "flac": "flac"}
"""FFmpeg's names for what the response formats come in."""
FORMATS = ("pcm", "wav", *DEMUXERS)

Samples = NDArray[np.float32]


class Undecodable(ValueError):
    """Bytes that are not what the format says."""


@dataclass(frozen=True)
class Chunk:
    """Bytes, and when they came, seconds."""

    at: float
    data: bytes


@dataclass(frozen=True)
class Playable:
    """Samples `[n]` of full scale 1 and the time from which they can be played."""

    at: float
    samples: Samples


def playable(chunks: Sequence[Chunk], audio_format: str, rate: int) -> tuple[int, list[Playable]]:
    """Sample rate, and all of the stream's samples in order. `rate` is that of pcm.

    Raises Undecodable.
    """
    data = b"".join(chunk.data for chunk in chunks)
    if audio_format in DEMUXERS:
        return _decoded(data, chunks, DEMUXERS[audio_format])
    begin = 0
    if audio_format == "wav":
        rate, begin = wav_layout(data)
    return rate, list(_whole_samples(data, begin, chunks))


def wav_layout(data: bytes) -> tuple[int, int]:
    """Sample rate, and where the samples begin. Raises Undecodable unless 16-bit mono PCM."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise Undecodable("the audio does not begin as a WAV file does")
    rate, at = 0, 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"fmt " and at + 16 <= len(data):
            coding, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, at)
            if (coding, channels, bits) != (1, 1, 16):
                raise Undecodable(
                    f"WAV coding {coding} of {channels} channels and {bits} bits; this tool reads "
                    "coding 1 (PCM), one channel, 16 bits"
                )
        if name == b"data" and rate:
            return rate, at
        at += size + size % 2
    raise Undecodable("the WAV file has no samples")


def _whole_samples(data: bytes, begin: int, chunks: Sequence[Chunk]) -> Iterator[Playable]:
    pcm = np.frombuffer(data, "<i2", (len(data) - begin) // 2, begin)
    come = done = 0
    for chunk in chunks:
        come += len(chunk.data)
        whole = max(0, come - begin) // 2
        yield Playable(chunk.at, pcm[done:whole].astype(np.float32) / 32768)
        done = whole


def _decoded(data: bytes, chunks: Sequence[Chunk], demuxer: str) -> tuple[int, list[Playable]]:
    come = np.cumsum([len(chunk.data) for chunk in chunks])
    rate, packets = _packets(data, demuxer)
    found = []
    end = following = len(data)
    for samples, begin in reversed(packets):
        if begin < following:  # else it shares a page with the next
            end, following = following, begin
        found.append(Playable(chunks[int(np.searchsorted(come, end))].at, samples))
    return rate, found[::-1]


def _packets(data: bytes, demuxer: str) -> tuple[int, list[tuple[Samples, int]]]:
    """Sample rate; of each packet its samples and where it begins."""
    rate, packets = 0, []
    try:
        with av.open(io.BytesIO(data), format=demuxer) as container:
            stream = container.streams.audio[0]
            mono = av.AudioResampler(format="flt", layout="mono")
            for packet in container.demux(stream):
                begin = len(data) if packet.pos is None else packet.pos
                frames = [part for frame in packet.decode() for part in mono.resample(frame)]
                if frames:
                    rate = frames[0].sample_rate
                    pieces = [frame.to_ndarray()[0] for frame in frames]
                    packets.append((np.concatenate(pieces), begin))
    except (av.error.FFmpegError, IndexError) as error:
        raise Undecodable(f"the audio is not what {demuxer} is: {error}") from error
    if not packets:
        raise Undecodable(f"the audio is not what {demuxer} is: it has no samples")
    return rate, packets
