"""Recordings as the job reads them: blocks at another rate are the whole at it, and so are rows."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers.example import VOICE, clips_of
from sheen.audio.io import decode, decode_audio, resampled
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, ClipReader
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.decoding import WHOLE, read_rows, resample_blocks
from sheen.prepare.stages.cut import _cut, cut_source
from sheen.storage.files import LFS_POINTER

RATE = 16_000


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_blocks_at_another_rate_are_the_whole_recording_at_it(rate: int) -> None:
    samples = resampled(*decode(clips_of(VOICE)[10].path.read_bytes()), rate)
    whole = resampled(samples, rate, RATE)
    for sizes in ([977], [1, 5000, 64]):
        edges = np.cumsum(np.resize(sizes, 4000))
        pieces = np.split(samples, edges[edges < len(samples)])
        blocks = np.concatenate(list(resample_blocks(pieces, rate, RATE)))
        count = min(len(blocks), len(whole))
        assert abs(len(blocks) - len(whole)) <= 2
        assert np.abs(blocks[:count] - whole[:count]).max() < 0.02


def test_rows_are_read_in_the_order_given_and_what_is_gone_is_empty(tmp_path: Path) -> None:
    clips = clips_of("bf_alice")[8:10]
    spans = [(clips[1], 0.5, 1.0), (clips[0], 0.0, 0.4), (clips[1], 0.1, 0.3)]
    rows = [{"audio": str(clip.path), "start": a, "end": b} for clip, a, b in spans]
    gone = {"audio": str(tmp_path / "gone.mp3"), "start": 0.0, "end": 1.0}
    found = read_rows([*rows, gone], RATE)
    assert [len(samples) for samples in found] == [RATE // 2, 2 * RATE // 5, RATE // 5, 0]
    whole = decode_audio(clips[0].path.read_bytes(), RATE)
    assert np.abs(found[1][:6000] - whole[:6000]).max() < 0.02


def test_channels_that_cancel_out_are_told(tmp_path: Path) -> None:
    samples, rate = decode(clips_of(VOICE)[10].path.read_bytes())
    path = tmp_path / "inverted.flac"
    soundfile.write(path, np.stack([samples, -samples], axis=1), rate)
    found = cut_source(str(path), CutSettings())
    assert found["reason"] == "no speech"
    assert "the mean of its 2 channels is silence" in str(found["detail"])


def test_of_a_damaged_recording_what_stands_before_the_fault_is_used(tmp_path: Path) -> None:
    data = clips_of("af_bella")[-1].path.read_bytes()
    whole = AudioFile(io.BytesIO(data))
    seconds = sum(map(len, whole.blocks())) / whole.rate
    path = tmp_path / "cut.opus"
    path.write_bytes(data[: int(0.6 * len(data))])
    found = cut_source(str(path), CutSettings())
    assert 0.4 * seconds < float(str(found["seconds"])) < 0.8 * seconds
    assert found["segments"]


class Over(Exception):
    pass


@pytest.mark.parametrize("channels", [False, True])
def test_opening_and_reading_are_within_a_limit(channels: bool) -> None:
    """Wherever a recording hangs, somebody looks at the clock."""
    clip = clips_of("af_bella")[-1]
    assert clip.seconds > 6  # several steps
    for last in range(1, 5):
        entered = 0

        @contextmanager
        def limit(last: int = last) -> Iterator[None]:
            nonlocal entered
            entered += 1
            if entered == last:
                raise Over
            yield

        with pytest.raises(Over):
            cut_source(str(clip.path), CutSettings(), channels, limit)


def test_what_ended_a_worker_is_not_read_by_the_driver(tmp_path: Path) -> None:
    row = {"audio": str(clips_of(VOICE)[10].path), "start": 0.0, "end": 0.5}
    reasons = [None, "decoder crashed", "decoder hung", "too soft"]
    found = read_rows([row | {"reason": reason} for reason in reasons], RATE)
    assert [len(samples) for samples in found] == [8000, 0, 0, 8000]


@pytest.mark.parametrize("content", [None, b"", b"no audio at all", LFS_POINTER + b"v1\n"])
def test_what_cannot_be_read_has_the_reason_that_encoding_gives(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "one.wav"
    if content is not None:
        path.write_bytes(content)
    found = _cut({"key": 0, "audio": str(path), "name": "one"}, CutSettings())
    with pytest.raises(ClipError) as raised:
        ClipReader().read({"audio": str(path), "start": 0.0, "end": 1.0, **WHOLE})
    assert (found["reason"], found["detail"]) == (raised.value.reason, str(raised.value))
