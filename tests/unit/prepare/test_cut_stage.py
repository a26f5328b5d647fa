"""Recordings as the first stage cuts them: damaged and silent ones, and those with a speaker on
each channel, each of which is cut by itself and has its own speech alone."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from helpers.example import RATE, VOICE, clips_of, read_clip
from sheen.audio.io import decode, resampled
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipError, ClipReader
from sheen.data.corpus import read_manifest
from sheen.prepare.cutting.analysis import WHOLE, resample_blocks
from sheen.prepare.cutting.cut import CutSettings
from sheen.prepare.cutting.vad import RATE as VAD_RATE
from sheen.prepare.manifest import jsonl_row, plan_segments
from sheen.prepare.output import CUT_SCHEMA, write_lines
from sheen.prepare.rejections.reasons import CROSSTALK_DB
from sheen.prepare.stages.cut import _cut, cut_source
from sheen.storage.files import LFS_POINTER

LEAK = 10 ** (-20 / 20)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_blocks_at_another_rate_are_the_whole_recording_at_it(rate: int) -> None:
    samples = resampled(*decode(clips_of(VOICE)[10].path.read_bytes()), rate)
    whole = resampled(samples, rate, VAD_RATE)
    for sizes in ([977], [1, 5000, 64]):
        edges = np.cumsum(np.resize(sizes, 4000))
        pieces = np.split(samples, edges[edges < len(samples)])
        blocks = np.concatenate(list(resample_blocks(pieces, rate, VAD_RATE)))
        count = min(len(blocks), len(whole))
        assert abs(len(blocks) - len(whole)) <= 2
        assert np.abs(blocks[:count] - whole[:count]).max() < 0.02


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


def call() -> tuple[NDArray[np.float32], list[tuple[int, float, float]]]:
    """Two people in turns, each heard 20 dB softer on the other's channel: samples `[n, 2]`, and
    who speaks from where to where, seconds."""
    rng = np.random.default_rng(5)
    clips = [*zip(clips_of(VOICE)[8:11], clips_of("am_onyx")[8:11], strict=True)]
    parts: list[NDArray[np.float32]] = []
    turns = []
    for number, clip in enumerate(clip for pair in clips for clip in pair):
        parts.append((1e-4 * rng.standard_normal((RATE, 2))).astype(np.float32))
        at = sum(map(len, parts)) / RATE
        samples, own = read_clip(clip), number % 2
        parts.append(np.stack([samples * (1 if own == side else LEAK) for side in (0, 1)], axis=1))
        turns.append((own, at, at + len(samples) / RATE))
    return np.concatenate(parts), turns


def planned(path: Path, settings: CutSettings) -> tuple[list[Any], list[Any]]:
    """Segments to transcribe, and those that are rejected."""
    row = dict.fromkeys(CUT_SCHEMA.names) | {"key": 0, "audio": str(path), "name": path.stem}
    segments = plan_segments([row | cut_source(str(path), settings, each_channel=True)], settings)
    return segments.table.to_pylist(), segments.rejected


def test_each_channel_is_its_speakers_and_is_encoded_as_it_was_cut(tmp_path: Path) -> None:
    samples, turns = call()
    path = tmp_path / "call.flac"
    soundfile.write(path, samples, RATE)
    rows, rejected = planned(path, CutSettings())
    assert [row["channel"] for row in rows] == [own for own, _, _ in turns]
    for row, (own, start, end) in zip(rows, turns, strict=True):
        assert start - 0.2 < row["start"] < start + 0.1
        assert end - 0.1 < row["end"] < end + 0.2
        assert row["id"].startswith(f"call-channel{own}-")
    # The other's voice, where it is loud enough to be taken for speech.
    assert {row["reason"] for row in rejected} <= {"heard on another channel"}
    assert all(row["crosstalk_db"] > CROSSTALK_DB for row in rejected)
    assert all(row["crosstalk_db"] < 0 for row in rows)
    for row in rows:
        own = np.abs(samples[:, row["channel"]]).max()
        assert row["peak"] == pytest.approx(own, abs=1e-4)
    # Of each, its three longest segments are asked for their language.
    assert sum(row["check_language"] for row in rows) == 6

    names = ("id", "audio", "container", "place", "channel", "start", "end")
    shown = [jsonl_row({name: row[name] for name in names}) | {"text": "a text"} for row in rows]
    assert all("audio_place" not in row for row in shown)
    write_lines(str(tmp_path / "manifest.jsonl"), shown)
    reader = ClipReader()
    for row in read_manifest(str(tmp_path / "manifest.jsonl")).to_pylist():
        found, rate = reader.read(row)
        first, last = (round(row[name] * rate) for name in ("start", "end"))
        np.testing.assert_allclose(found, samples[first:last, row["channel"]], atol=1e-4)


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.99])
def test_channels_that_are_copies_are_one(tmp_path: Path, factor: float) -> None:
    samples = read_clip(clips_of(VOICE)[8])
    path = tmp_path / "copies.flac"
    soundfile.write(path, np.stack([samples, factor * samples], axis=1), RATE)
    found = cut_source(str(path), CutSettings(), each_channel=True)
    assert found["channels"] == 1
    segments = found["segments"]
    assert isinstance(segments, list)
    assert [segment["channel"] for segment in segments] == [0]
    assert segments[0]["crosstalk_db"] is None


def test_a_mono_recording_among_calls_is_cut_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "mono.flac"
    soundfile.write(path, read_clip(clips_of(VOICE)[8]), RATE)
    assert cut_source(str(path), CutSettings(), each_channel=True) == cut_source(
        str(path), CutSettings()
    )
