"""Readers of sound files that share no code with the writer (ffmpeg): what they make of bytes."""

import io
import shutil
import subprocess
import wave
from collections.abc import Callable
from pathlib import Path

import mutagen
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

RATE = 24_000
SLACK = {"mp3": 1152 + 575, "aac": 1024 + 1024}
"""Samples that a decoder gives at most beyond those that were spoken, where a file does not state
them: see `sheen.audio.encoders.AudioEncoder`."""

Samples = NDArray[np.float32]


def _run(*command: str, data: bytes = b"") -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs the command {command[0]}")
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout


def _mono16(raw: bytes) -> Samples:
    return np.frombuffer(raw, "<i2").astype(np.float32) / 32768


def libsndfile(data: bytes, folder: Path) -> Samples:
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    return np.asarray(samples[:: rate // RATE])


def pythons(data: bytes, folder: Path) -> Samples:
    with wave.open(io.BytesIO(data)) as file:
        assert file.getparams()[:3] == (1, 2, RATE)
        return _mono16(file.readframes(file.getnframes()))


def sox(data: bytes, folder: Path) -> Samples:
    return _mono16(_run("sox", "-t", "wav", "-", "-t", "raw", "-", data=data))


def mpg123(data: bytes, folder: Path) -> Samples:
    return _mono16(_run("mpg123", "-q", "-s", "-", data=data))


def opusdec(data: bytes, folder: Path) -> Samples:
    (folder / "speech.opus").write_bytes(data)
    command = ("opusdec", "--quiet", "--rate", str(RATE))
    _run(*command, str(folder / "speech.opus"), str(folder / "speech.wav"))
    return libsndfile((folder / "speech.wav").read_bytes(), folder)


def flac(data: bytes, folder: Path) -> Samples:
    strictly = ["--warnings-as-errors"] if any(data[26:42]) else []  # it misses the checksum
    _run("flac", "-t", *strictly, "-", data=data)
    raw = ("--force-raw-format", "--endian=little", "--sign=signed")
    return _mono16(_run("flac", "-d", "-c", "--totally-silent", *raw, "-", data=data))


def faad(data: bytes, folder: Path) -> Samples:
    (folder / "speech.aac").write_bytes(data)
    _run("faad", "-q", "-o", str(folder / "speech.wav"), str(folder / "speech.aac"))
    samples, rate = soundfile.read(folder / "speech.wav", dtype="float32")
    # It expects that low rates are half of the true one, and one channel the half of two.
    return np.asarray(samples[:: rate // RATE, 0])


READERS: dict[str, tuple[Callable[[bytes, Path], Samples], ...]] = {
    "mp3": (mpg123, libsndfile),
    "opus": (opusdec, libsndfile),
    "flac": (flac, libsndfile),
    "wav": (libsndfile, pythons, sox),
    "aac": (faad,),
}
"""All that read a format. mutagen reads headers alone: see `stated_samples`."""


def stated_samples(data: bytes) -> float:
    """How long a file is by its headers, in samples."""
    length: float = mutagen.File(io.BytesIO(data)).info.length
    return length * RATE


def check_speech(audio_format: str, data: bytes, count: int, whole: bool, folder: Path) -> None:
    """Every reader must find the `count` samples that were spoken, to the sample where the file can
    state them, and the headers must say so."""
    if audio_format == "pcm":
        assert len(data) == 2 * count
        return
    exact = audio_format != "aac" and (whole or audio_format != "mp3")
    for reader in READERS[audio_format]:
        if (reader, audio_format, whole) == (libsndfile, "flac", False):
            with pytest.raises(ValueError, match="array is too big"):  # as the documents say
                reader(data, folder)
            continue
        surplus = len(reader(data, folder)) - count
        assert 0 <= surplus <= (0 if exact else SLACK[audio_format]), (reader.__name__, surplus)
    if audio_format == "flac":
        samples = int.from_bytes(data[21:26], "big") & 0xFFFFFFFFF
        assert (samples, any(data[26:42])) == ((count, True) if whole else (0, False))
    if audio_format == "wav":
        sizes = {data[4:8], data[40:44]}
        pcm = 2 * count
        known = {(36 + pcm).to_bytes(4, "little"), pcm.to_bytes(4, "little")}
        assert sizes == (known if whole else {b"\xff\xff\xff\xff"})
        assert len(data) == 44 + pcm
    elif whole and exact:
        assert abs(stated_samples(data) - count) < 1
