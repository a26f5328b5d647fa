"""Recordings as streams: the samples of the whole file, in blocks, and what a fault ends."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.example import clips_of
from sheen.audio.io import AudioError, decode, encode_audio, resampled
from sheen.prepare.decoding import AudioStream, read_rows

RATE = 16_000


def tone(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def read(data: bytes, rate: int = RATE) -> tuple[np.ndarray, AudioStream]:
    stream = AudioStream(io.BytesIO(data), rate)
    return np.concatenate(list(stream)), stream


def test_a_stream_is_the_whole_file() -> None:
    data = clips_of("heart")[10].path.read_bytes()
    samples, stream = read(data)
    whole = resampled(*decode(data), RATE)
    assert abs(len(samples) - len(whole)) <= 2
    count = min(len(samples), len(whole))
    assert np.abs(samples[:count] - whole[:count]).max() < 0.02
    assert stream.fault is None
    assert stream.seconds == len(samples) / RATE


def test_blocks_are_small() -> None:
    data = encode_audio(tone(60.0, 48_000), 48_000, "FLAC")
    blocks = [len(block) for block in AudioStream(io.BytesIO(data), RATE)]
    assert sum(blocks) == pytest.approx(60 * RATE, abs=2)
    assert max(blocks) <= 0.5 * RATE


def test_channels_are_averaged() -> None:
    file = io.BytesIO()
    stereo = np.stack([tone(1.0, RATE), np.zeros(RATE, np.float32)], axis=1)
    soundfile.write(file, stereo, RATE, format="FLAC")
    samples, stream = read(file.getvalue())
    assert np.abs(samples).max() == pytest.approx(0.25, abs=0.01)
    assert (stream.channels, stream.source_rate) == (2, RATE)


def test_what_stands_before_a_fault_is_used() -> None:
    data = encode_audio(tone(4.0, RATE, 313.7) + 0.1, RATE, "FLAC")
    broken = data[: len(data) // 2] + bytes(200) + data[len(data) // 2 :][200:]
    samples, stream = read(broken)
    assert len(samples) > RATE
    assert stream.seconds == len(samples) / RATE
    half, stream = read(data[: len(data) // 2])
    assert RATE < len(half) < 3 * RATE


def test_what_holds_no_audio_is_refused(tmp_path: Path) -> None:
    for data, reason in (
        (b"no audio at all, but a text", "unreadable"),
        (encode_audio(np.zeros(0, np.float32), RATE, "WAV"), "empty"),
    ):
        with pytest.raises(AudioError) as refused:
            read(data)
        assert refused.value.reason == reason


def test_rows_are_what_the_stream_has_there(tmp_path: Path) -> None:
    """Of a whole recording and of one that breaks off; the order is that of the rows."""
    wave = tone(8.0, 24_000, 313.7) * np.linspace(0.1, 1, 8 * 24_000, dtype=np.float32)
    data = encode_audio(wave, 24_000, "FLAC")
    (tmp_path / "whole.flac").write_bytes(data)
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    whole, _ = read(data)
    part, stream = read(data[: len(data) // 2])
    end = stream.seconds
    spans = [
        ("whole", 5.0, 6.5),
        ("cut", 1.0, 2.0),
        ("whole", 0.2, 1.0),
        ("cut", round(end - 1, 2), end + 1),
    ]
    rows = [
        {"audio": str(tmp_path / f"{name}.flac"), "start": start, "end": until}
        for name, start, until in spans
    ]
    found = read_rows(rows, RATE)
    for samples, (name, start, until) in zip(found, spans, strict=True):
        source = whole if name == "whole" else part
        expected = source[round(start * RATE) : round(until * RATE)]
        assert abs(len(samples) - len(expected)) <= 2
        middle = slice(200, len(expected) - 200)
        np.testing.assert_allclose(samples[middle], expected[middle], atol=5e-3)
    gone = {"audio": str(tmp_path / "gone.flac"), "start": 0.0, "end": 1.0}
    with pytest.raises(AudioError) as refused:
        read_rows([gone], RATE)
    assert refused.value.reason == "missing"
