"""Reading segments: what it costs, whatever they begin and end with."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from helpers.encoded_audio import by_pyav
from helpers.example import VOICE, clips_of
from sheen.audio.io import decode_audio
from sheen.audio.stream import AudioFile
from sheen.data.clips import ClipReader
from sheen.prepare.cutting.cut import QUIETEST
from sheen.prepare.cutting.vad import RATE
from sheen.prepare.output import SEGMENT_SCHEMA
from sheen.prepare.stages.pipelines import (
    SEGMENTS,
    SEGMENTS_MANIFEST,
    _file_of,
    write_segments,
)
from sheen.prepare.stages.transcribe import AROUND_S, TranscribeWorker, _read_all, read_rows
from sheen.scoring.asr.transcript import Transcript, Word
from sheen.storage import files, uris

SECONDS, SEGMENT_S = 16, 3.0


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ogg Opus, which has no exact place to seek to, with two channels."""
    noise = np.random.default_rng(0).standard_normal((SECONDS * 48_000, 2)).astype(np.float32)
    path = tmp_path_factory.mktemp("long") / "two.opus"
    path.write_bytes(by_pyav(0.1 * noise, 48_000, "ogg", "libopus"))
    return path


def segments(recording: Path, channels: tuple[int | None, ...]) -> list[dict[str, Any]]:
    """Speech without a pause: all cuts are at quietest places."""
    places = [
        (start, channel)
        for start in np.arange(0.5, SECONDS - SEGMENT_S, SEGMENT_S)
        for channel in channels
    ]
    return [
        dict.fromkeys(SEGMENT_SCHEMA.names)
        | {"key": key, "audio": str(recording), "channel": channel}
        | {"start": float(start), "end": float(start) + SEGMENT_S}
        | {"start_at": QUIETEST, "end_at": QUIETEST, "regions": [[0.2, 2.8]]}
        for key, (start, channel) in enumerate(places)
    ]


@pytest.mark.parametrize("channels", [(None,), (0, 1)])
def test_segments_of_a_file_that_is_only_read_on_cost_one_reading(
    recording: Path, channels: tuple[int | None, ...]
) -> None:
    """Of each channel, which is read by itself."""
    reader = ClipReader()
    files: dict[int, AudioFile] = {}

    @contextmanager
    def limit(_: Hashable) -> Iterator[None]:
        yield
        assert reader._audio is not None
        files[id(reader._audio)] = reader._audio

    rows = segments(recording, channels)
    found = _read_all(reader, rows, {}, None, limit)
    decoded = sum(file.decoded for file in files.values()) / 48_000
    assert SECONDS - SEGMENT_S < decoded / len(channels) < 1.2 * SECONDS
    assert [row["key"] for row in found] == list(range(len(rows)))
    for row, alone in zip(found[:4], segments(recording, channels), strict=False):
        assert row["reason"] is None
        assert len(row["pcm"]) == 2 * round(SEGMENT_S * RATE)
        assert [round(window["at"], 3) for window in row["cuts"]] == [
            min(AROUND_S, row["start"]), AROUND_S,
        ]  # fmt: skip
        assert _read_all(ClipReader(), [alone], {}, None, limit) == [row]


class Told:
    """An ASR that tells these word times, one after the other."""

    def __init__(self, *words: list[Word] | None) -> None:
        self.words = iter(words)

    def transcribe_words(self, waveforms: list[Any], sample_rate: int) -> list[Transcript]:
        return [Transcript("some words", next(self.words)) for _ in waveforms]


def test_a_cut_that_the_asr_has_no_word_times_for_counts_as_unchecked() -> None:
    cuts = [{"at": AROUND_S, "pcm": b"\0\0"}, {"at": AROUND_S, "pcm": b"\0\0"}]
    worker = TranscribeWorker.__new__(TranscribeWorker)
    around = [Word("word", AROUND_S - 0.3, AROUND_S + 0.3)]
    for told, found in (
        ((None, []), (None, 1)),
        ((None, None), (None, 2)),
        ((None, around), ("word", 1)),
        (([], []), (None, 0)),
    ):
        worker._asr = Told(*told)
        expected = dict(zip(("cut_word", "cuts_unchecked"), found, strict=True))
        assert worker._check_cuts(cuts) == expected


def test_rows_are_read_in_the_order_given_and_what_is_gone_is_empty(tmp_path: Path) -> None:
    clips = clips_of("bf_alice")[8:10]
    spans = [(clips[1], 0.5, 1.0), (clips[0], 0.0, 0.4), (clips[1], 0.1, 0.3)]
    rows = [{"audio": str(clip.path), "start": a, "end": b} for clip, a, b in spans]
    gone = {"audio": str(tmp_path / "gone.mp3"), "start": 0.0, "end": 1.0}
    found = read_rows([*rows, gone], RATE)
    assert [len(samples) for samples in found] == [RATE // 2, 2 * RATE // 5, RATE // 5, 0]
    whole = decode_audio(clips[0].path.read_bytes(), RATE)
    assert np.abs(found[1][:6000] - whole[:6000]).max() < 0.02


@pytest.mark.parametrize(
    "name",
    [
        "a/b", "a b #1 %20 é?*", "../../a", "/tmp/a", "a/../../b", ".a", "a/.b", "a//b", "a/", "",
        "https://host/watch?v=1", "é" * 200, f"a/{'b' * 250}/c",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_segment_has_a_file_in_its_folder_whatever_its_id(
    scheme: str, name: str, tmp_path: Path
) -> None:
    """It is found there by the next run, and by the manifest."""
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE, np.float32), RATE)
    row = {"audio": str(tmp_path / "a.wav"), "start": 0.0, "end": 0.5}
    row |= {"container": None, "place": None, "channel": None}
    output = f"{scheme}{tmp_path}/out"
    path = _file_of({"id": name})
    table = pa.Table.from_pylist([row | {"path": path}])
    for column, kind in (("place", pa.list_(pa.int64())), ("container", pa.string())):
        at = table.schema.get_field_index(column)
        table = table.set_column(at, column, table[column].cast(kind))
    (told,) = write_segments(table, folder=f"{output}/{SEGMENTS}").to_pylist()
    assert told == {"fault": None, "unread": None}
    (found,) = files.list_below(f"{output}/{SEGMENTS}")
    assert found == uris.child(f"{output}/{SEGMENTS}", path)
    assert found == uris.sibling(f"{output}/{SEGMENTS_MANIFEST}", f"{SEGMENTS}/{path}")
    assert (path == f"{name}.flac") is (name in ("a/b", "a b #1 %20 é?*"))


@pytest.mark.parametrize(
    ("rate", "held"),
    [
        (8_000, 8_000), (65_535, 65_535), (96_000, 96_000), (96_001, 96_000), (384_000, 384_000),
        (655_350, 655_350), (655_351, 327_670), (768_000, 384_000), (999_983, 499_990),
    ],
)  # fmt: skip
def test_a_segment_is_written_at_its_rate_or_the_nearest_fraction_that_flac_has(
    rate: int, held: int, tmp_path: Path
) -> None:
    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(rate // 5) / rate)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, rate, subtype="FLOAT")
    row = {"audio": str(tmp_path / "a.wav"), "path": "a.flac", "start": 0.05, "end": 0.15}
    row |= {"container": None, "place": None, "channel": None}
    table = pa.Table.from_pylist([row])
    assert write_segments(table, folder=str(tmp_path)).to_pylist() == [
        {"fault": None, "unread": None}
    ]
    found, at = soundfile.read(tmp_path / "a.flac", dtype="float32")
    assert at == held
    assert len(found) / held == pytest.approx(0.1, abs=1e-4)
    inside = slice(held // 200, -held // 200)
    expected = 0.3 * np.sin(2 * np.pi * 440 * (0.05 + np.arange(len(found)) / held))
    assert np.abs(found - expected)[inside].max() < 0.01


def test_what_ended_a_worker_is_not_read_by_the_driver(tmp_path: Path) -> None:
    row = {"audio": str(clips_of(VOICE)[10].path), "start": 0.0, "end": 0.5}
    reasons = [None, "decoder crashed", "decoder hung", "too soft"]
    found = read_rows([row | {"reason": reason} for reason in reasons], RATE)
    assert [len(samples) for samples in found] == [8000, 0, 0, 8000]
