"""Audio: every container a user may bring, every way a file can be broken, and PCM out."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from helpers.encoded_audio import by_pyav, by_soundfile
from sheen.audio.io import (
    HIGHEST_RATE,
    LARGEST_KERNEL,
    LOWEST_RATE,
    AudioError,
    decode,
    decode_audio,
    from_pcm16,
    resampled,
    resampling_ratio,
    to_pcm16,
    wav_header,
)
from sheen.audio.stream import AudioFile

RATE = 24000
UNKNOWN_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)
"""What programs that stream WAV write where the length belongs."""


def tone(
    rate: int, channels: int = 1, seconds: float = 1.0, frequency: float = 440.0
) -> NDArray[np.float32]:
    """`[n, channels]`, the same sine in every channel."""
    time = np.arange(round(rate * seconds)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def encoded(samples: NDArray[np.float32], rate: int, kind: str) -> bytes:
    if kind == "opus":
        return by_pyav(samples, rate, "ogg", "libopus")
    if kind == "ogg":
        return by_soundfile(samples, rate, "OGG", "VORBIS")
    return by_soundfile(samples, rate, kind.upper())


def dominant_frequency(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * RATE / len(samples)


def reason_of(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        decode_audio(data, RATE)
    return caught.value.reason


def png() -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    pixels = zlib.compress((b"\0" + b"\x10\x20\x30" * 4) * 4)
    header = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# Decoding

# MP3 and FLAC as libsndfile writes them hold at most 2 and 8 channels; Opus knows few rates.
# Every kind with every rate or its neighbour, and every number of channels with each kind.
FORMATS = [
    *(("wav", 8000, 1), ("wav", 22050, 2), ("wav", 48000, 6)),
    *(("flac", 16000, 2), ("flac", 44100, 6), ("flac", 22050, 1)),
    *(("mp3", 44100, 2), ("mp3", 16000, 1)),
    *(("ogg", 48000, 1), ("ogg", 8000, 6)),
    *(("opus", 16000, 6), ("opus", 48000, 2)),
]


@pytest.mark.parametrize(("kind", "rate", "channels"), FORMATS)
def test_any_file_becomes_mono_at_the_codecs_rate(kind: str, rate: int, channels: int) -> None:
    samples = decode_audio(encoded(tone(rate, channels), rate, kind), RATE)
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    # ffmpeg does not trim a Vorbis stream of one page to the sample: a block may stay or go.
    tolerance_s = 256 / 8000 if kind == "ogg" else 0.003
    assert abs(len(samples) / RATE - 1.0) <= tolerance_s
    assert dominant_frequency(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[RATE // 4 : -RATE // 4]).max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("sample_rate", [16000, 32000, 44100])
def test_the_wanted_rate_is_any_codecs(sample_rate: int) -> None:
    samples = decode_audio(by_soundfile(tone(48000), 48000, "WAV"), sample_rate)
    assert len(samples) == sample_rate


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_every_sample_type_keeps_its_amplitude(subtype: str) -> None:
    samples = decode_audio(by_soundfile(tone(RATE), RATE, "WAV", subtype), RATE)
    np.testing.assert_allclose(samples, tone(RATE)[:, 0], atol=1 / 100)


@pytest.mark.parametrize("channels", [2, 6, 8, 9, 24, 64])
def test_channels_are_averaged(channels: int) -> None:
    rng = np.random.default_rng(channels)
    samples = rng.uniform(-1, 1, (5000, channels)).astype(np.float32)
    decoded = decode_audio(by_soundfile(samples, RATE, "WAV", "FLOAT"), RATE)
    np.testing.assert_allclose(decoded, samples.mean(axis=1), atol=1e-6)


# Rates

USUAL_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
CODEC_RATES = (16000, 24000, 32000, 44100)


@pytest.mark.parametrize("wanted", CODEC_RATES)
@pytest.mark.parametrize("rate", USUAL_RATES)
def test_usual_rates_are_resampled_to_the_bit_as_they_always_were(rate: int, wanted: int) -> None:
    """The codes of recordings that were encoded before must stay what they are."""
    samples = np.random.default_rng(rate).uniform(-1, 1, rate // 10).astype(np.float32)
    expected = torchaudio.functional.resample(torch.from_numpy(samples), rate, wanted).numpy()
    np.testing.assert_array_equal(resampled(samples, rate, wanted), expected)


@given(rate=st.integers(LOWEST_RATE, HIGHEST_RATE), wanted=st.sampled_from(CODEC_RATES))
@example(rate=16_001, wanted=24_000)
@example(rate=44_101, wanted=24_000)
@example(rate=HIGHEST_RATE - 1, wanted=24_000)
def test_no_rate_makes_a_large_filter_or_another_pitch(rate: int, wanted: int) -> None:
    source, target = resampling_ratio(rate, wanted)
    assert source * target <= LARGEST_KERNEL
    assert source / target == pytest.approx(rate / wanted, rel=1e-3)


def test_a_file_whose_rate_changes_is_right_before_and_after() -> None:
    joined = b"".join(by_soundfile(tone(rate), rate, "MP3") for rate in (24000, 44100, 16000))
    samples = decode_audio(joined, RATE)
    assert len(samples) / RATE == pytest.approx(3.0, abs=0.25)
    for second in (0.3, 1.4, 2.5):
        part = samples[round(second * RATE) : round((second + 0.4) * RATE)]
        assert dominant_frequency(part) == pytest.approx(440, abs=3)


def test_a_wav_may_hold_other_chunks_around_its_audio() -> None:
    wav = wav_header(RATE, 1000) + to_pcm16(tone(RATE)[:1000, 0]).tobytes()
    note = b"LIST" + struct.pack("<I", 11) + b"INFOanynote\0"  # an odd length, padded
    chunks = wav[12:36] + note + wav[36:] + note
    data = b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
    np.testing.assert_allclose(decode_audio(data, RATE), tone(RATE)[:1000, 0], atol=2 / 32768)


@pytest.mark.parametrize("size", UNKNOWN_SIZES)
def test_a_streamed_wav_of_unknown_length_is_whole(size: int) -> None:
    header = bytearray(wav_header(RATE, RATE))
    header[4:8] = header[40:44] = struct.pack("<I", size)
    assert len(decode_audio(bytes(header) + bytes(2 * RATE), RATE)) == RATE


def test_what_this_project_streams_can_be_encoded_again() -> None:
    pcm = to_pcm16(tone(RATE)[:, 0])
    samples = decode_audio(wav_header(RATE) + pcm.tobytes(), RATE)
    np.testing.assert_allclose(samples, from_pcm16(pcm), atol=2 / 32768)


# Refusing

NOTHING = np.zeros((0, 1), np.float32)


def test_zero_bytes_are_empty() -> None:
    assert reason_of(b"") == "empty"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(by_soundfile(NOTHING, 16000, "WAV"), id="wav"),
        pytest.param(by_soundfile(NOTHING, 16000, "WAV", "FLOAT"), id="float wav"),
        # libsndfile writes nothing at all for a FLAC without samples.
        pytest.param(by_pyav(NOTHING, 16000, "flac", "flac"), id="flac"),
    ],
)
def test_a_header_without_samples_is_empty(data: bytes) -> None:
    assert data
    assert reason_of(data) == "empty"


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")],
)
def test_a_cut_file_is_truncated(container: str, subtype: str, share: float) -> None:
    whole = by_soundfile(tone(RATE, seconds=2.0), RATE, container, subtype)
    assert len(decode_audio(whole, RATE)) == 2 * RATE
    assert reason_of(whole[: int(len(whole) * share)]) == "truncated"


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_are_unreadable(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert reason_of(rng.bytes(int(rng.integers(1, 20000)))) == "unreadable"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"heart-0001|four five\n" * 200, id="text"),
        pytest.param(b"<html><body>404 Not Found</body></html>", id="html"),
        pytest.param(b'{"error": "no such object"}', id="json"),
        pytest.param(bytes(5000), id="zeros"),
        pytest.param(png(), id="png"),
    ],
)
def test_other_files_are_unreadable(data: bytes) -> None:
    assert reason_of(data) == "unreadable"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"ffconcat version 1.0\nfile other.wav\n", id="files"),
        pytest.param(
            b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
            b"m=audio 5004 RTP/AVP 0\n",
            id="network",
        ),
    ],
)
@pytest.mark.parametrize("read", [decode, lambda data: AudioFile(io.BytesIO(data))])
def test_a_list_of_files_or_addresses_is_no_recording_and_nothing_in_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, read: Callable[[bytes], object]
) -> None:
    (tmp_path / "other.wav").write_bytes(encoded(tone(RATE), RATE, "wav"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AudioError) as caught:
        read(data)
    assert caught.value.reason == "unreadable"
    assert "timed out" not in str(caught.value)


# PCM


def test_pcm16_round_trip_is_within_one_step() -> None:
    samples = np.linspace(-1, 1, 100_001, dtype=np.float32)
    pcm = to_pcm16(samples)
    assert pcm.dtype == np.dtype("<i2")
    assert np.abs(from_pcm16(pcm) - samples).max() <= 1 / 32767
    np.testing.assert_array_equal(to_pcm16(from_pcm16(pcm)), pcm)


def test_pcm16_clips_and_does_not_wrap() -> None:
    pcm = to_pcm16(np.array([-7, -1.001, -1, 0, 1, 1.001, 7], np.float32))
    assert pcm.tolist() == [-32767, -32767, -32767, 0, 32767, 32767, 32767]


@pytest.mark.parametrize("rate", [24000, 32000, 44100])
def test_wav_header_of_known_length_opens_anywhere(rate: int) -> None:
    pcm = to_pcm16(tone(rate)[:, 0])
    header = wav_header(rate, len(pcm))
    assert len(header) == 44
    info = soundfile.info(io.BytesIO(header + pcm.tobytes()))
    assert (info.samplerate, info.channels, info.frames) == (rate, 1, len(pcm))
    assert info.subtype == "PCM_16"
    read, _ = soundfile.read(io.BytesIO(header + pcm.tobytes()), dtype="int16")
    np.testing.assert_array_equal(read, pcm)


@pytest.mark.parametrize("rate", [24000, 44100])
def test_wav_header_of_unknown_length_plays_to_the_end(rate: int) -> None:
    pcm = to_pcm16(tone(rate)[:, 0])
    with av.open(io.BytesIO(wav_header(rate) + pcm.tobytes())) as container:
        stream = container.streams.audio[0]
        assert stream.rate == rate
        frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(stream)]
    np.testing.assert_array_equal(np.concatenate(frames), pcm)
