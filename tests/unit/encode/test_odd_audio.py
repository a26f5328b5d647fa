"""Recordings as devices, tools and accidents leave them, as the jobs read them: samples, or one
row's reason with its file's name, and never the end of a job."""

import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from helpers.example import FLAC_RATE as RATE
from helpers.example import VOICES, clips_of, flac
from sheen.audio.io import wav_header
from sheen.codec.layout import TokenLayout
from sheen.data.corpus import read_manifest
from sheen.encode.config import RecordingLimits
from sheen.encode.stages import DecodeSettings, decode_rows
from sheen.train.codec.data import SegmentReader, find_recordings


def clip() -> NDArray[np.int16]:
    samples, _ = soundfile.read(io.BytesIO(flac(clips_of(VOICES[0])[0])), dtype="int16")
    return samples


def written(samples: NDArray[np.int16], rate: int, kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def wav(samples: NDArray[np.int16], rate: int) -> bytes:
    """With any number as its rate."""
    return wav_header(rate, len(samples)) + samples.tobytes()


def tagged(tag: bytes) -> bytes:
    """A WAV with a title in an encoding of its own."""
    text = b"INFOINAM" + struct.pack("<I", len(tag)) + tag + b"\0" * (len(tag) % 2)
    chunks = wav(clip(), RATE)[8:] + b"LIST" + struct.pack("<I", len(text)) + text
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def same_in_all(channels: int) -> NDArray[np.int16]:
    return np.repeat(clip()[:, None], channels, axis=1)


def recordings() -> dict[str, tuple[bytes, float | None]]:
    """By file name: the file, and its length in seconds; None for what cannot be used."""
    samples = clip()
    seconds = len(samples) / RATE
    joined = written(samples, 24_000, "MP3") + written(samples, 44_100, "MP3")
    return {
        "plain.wav": (wav(samples, RATE), seconds),
        "tag.wav": (tagged("Café für Ω".encode("cp1253", "replace") + b"\xe9\xff"), seconds),
        "eight.wav": (written(same_in_all(8), RATE, "WAV"), seconds),
        "nine.wav": (written(same_in_all(9), RATE, "WAV"), seconds),
        "many.wav": (written(same_in_all(64), RATE, "WAV"), seconds),
        "too-many.wav": (written(same_in_all(65), RATE, "WAV"), None),
        "coprime.wav": (wav(samples, 16_001), len(samples) / 16_001),
        "slow.wav": (wav(samples, 1), None),
        "fast.wav": (wav(samples, 2_000_000_000), None),
        "joined.mp3": (joined, len(samples) / 24_000 + len(samples) / 44_100),
        "apple.caf": (written(samples, RATE, "CAF", "ALAC_16"), seconds),
        "sun.au": (written(samples, RATE, "AU"), seconds),
        "text.wav": (b"no sound at all" * 100, None),
    }


SAME = ("tag", "eight", "nine", "many", "apple", "sun")
"""Recordings of the same samples as plain.wav."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    (folder / "wavs").mkdir()
    for name, (data, _) in recordings().items():
        (folder / "wavs" / name).write_bytes(data)
    lines = (f"{Path(name).stem}|four five\n" for name in recordings())
    (folder / "metadata.csv").write_text("".join(lines), "utf-8")
    return folder


@pytest.mark.slow
def test_encoding_takes_each_odd_file_or_counts_it(folder: Path) -> None:
    settings = DecodeSettings(
        24_000, RecordingLimits(), TokenLayout(0, 4096, (4, 2, 1)), 2048 / 24_000
    )
    found = decode_rows(read_manifest(str(folder)), settings).to_pylist()
    expected = {Path(name).stem: seconds for name, (_, seconds) in recordings().items()}
    unusable = {name for name, seconds in expected.items() if seconds is None}
    refused = [row for row in found if row["reason"] is not None]
    assert {row["reason"] for row in refused} == {"unreadable"}
    assert {row["id"] for row in refused} == unusable
    for row in refused:
        assert row["detail"].startswith(f"{folder}/wavs/{row['id']}.")
        assert row["pcm"] is None
    rows = {row["id"]: row for row in found if row["reason"] is None}
    assert rows.keys() == expected.keys() - unusable
    for name, row in rows.items():
        # An MP3 has a frame or two of silence around it.
        assert row["seconds"] == pytest.approx(expected[name], abs=0.15 if name == "joined" else 0)
    for name in SAME:
        assert rows[name]["pcm"] == rows["plain"]["pcm"]
    # 62 millionths of a second per second are no other sound, though other codes.
    assert abs(len(rows["coprime"]["pcm"]) - len(rows["plain"]["pcm"])) <= 2 * 3


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False], ids=["metadata.csv", "any audio file"])
def test_codec_training_reads_each_odd_file_or_counts_it(
    folder: Path, tmp_path: Path, listed: bool
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    if not listed:
        (tmp_path / "data" / "metadata.csv").unlink()
    found = find_recordings(str(tmp_path / "data"), held_out=1, seed=0)
    paths = sorted(found.train + found.evaluation)
    assert {Path(path).name for path in paths} == recordings().keys()
    reader = SegmentReader(
        paths, sample_rate=24_000, samples=2048, per_rank=1, rank=0, world=1, seed=0
    )
    read = {Path(path).name: reader.read(path) for path in paths}
    for name, (_, seconds) in recordings().items():
        waveform = read[name]
        if seconds is None:
            assert waveform is None
            assert reader.unreadable[f"{tmp_path}/data/wavs/{name}"] == "unreadable"
        else:
            assert waveform is not None
            assert len(waveform) / 24_000 == pytest.approx(seconds, abs=0.15)
    assert [batch.shape for batch in reader.batches(0, 30)] == [(1, 2048)] * 30


@pytest.fixture(params=["mp3", "ogg", "flac", "wav", "caf", "aiff"])
def sound(request: pytest.FixtureRequest) -> bytes:
    return written(clip(), RATE, request.param.upper())


@pytest.mark.slow
def test_a_damaged_file_is_never_more_than_a_row(sound: bytes, tmp_path: Path) -> None:
    """Bytes changed anywhere, the header above all."""
    rng = np.random.default_rng(5)
    paths = []
    for number in range(40):
        damaged = bytearray(sound)
        for at in rng.integers(0, 200 if number % 2 else len(sound), 12):
            damaged[at] = rng.integers(256)
        paths.append(str(tmp_path / f"{number}.bin"))
        Path(paths[-1]).write_bytes(damaged)
    reader = SegmentReader(
        paths, sample_rate=24_000, samples=2048, per_rank=1, rank=0, world=1, seed=0
    )
    for path in paths:
        waveform = reader.read(path)
        if waveform is None:
            assert reader.unreadable[path] in ("empty", "truncated", "unreadable")
        else:
            assert np.isfinite(waveform).all()
