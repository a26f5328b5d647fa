"""The prepare job: raw recordings become rows that encode, each second accounted for."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from helpers.example import CODEC, RATE, ROOT, VOICE, clips_of, load_script, read_clip
from helpers.recogniser import tiny_en
from helpers.tasks import as_tasks
from sheen.codec.layout import TokenLayout
from sheen.encode.config import EncodeConfig
from sheen.encode.output import read_rows
from sheen.encode.stages import DecodeSettings, decode_rows
from sheen.prepare.cutting.analysis import WHOLE_FILE, Analysis, Measure, Range, analyze
from sheen.prepare.output import MANIFEST, REJECTED, REPORT
from sheen.prepare.report import pages as report_page
from sheen.prepare.stages.cut import in_tasks
from sheen.prepare.stages.transcribe import TranscribeWorker
from sheen.scoring.wer import error_rate, normalize_english
from sheen.storage.files import LFS_POINTER

Row = dict[str, Any]
LATER = "a-first.opus"
"""Not fetched yet, and before all others."""
SPOKEN = [*clips_of(VOICE)[8:11], *clips_of("am_onyx")[8:10]]

main = load_script(ROOT / "jobs" / "prepare.py").main


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[float, float]]]:
    """A folder of recordings, and where in `long.flac` each of SPOKEN is, in seconds."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    parts: list[np.ndarray] = []
    places = []
    for clip in SPOKEN:
        pause = round(rng.uniform(0.7, 1.5) * RATE)
        parts.append((1e-4 * rng.standard_normal(pause)).astype(np.float32))
        at = sum(map(len, parts)) / RATE
        parts.append(read_clip(clip))
        places.append((at, at + len(parts[-1]) / RATE))
    soundfile.write(folder / "long.flac", np.concatenate(parts), RATE)
    shutil.copy(clips_of(VOICE)[12].path, folder / "short.opus")
    soundfile.write(folder / "silence.wav", np.zeros(3 * RATE, np.float32), RATE)
    (folder / "broken.mp3").write_bytes(b"no sound" * 100)
    (folder / LATER).write_bytes(LFS_POINTER + b"1\noid sha256:0\nsize 9\n")
    (folder / "notes.txt").write_text("of the day in the studio", "utf-8")
    return folder, places


@pytest.mark.usefixtures("ray_cluster")
def test_raw_recordings_become_rows_that_encode(
    raw: tuple[Path, list[tuple[float, float]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Drawing players for all of them, three times, takes as long as transcribing them.
    monkeypatch.setattr(report_page, "PLAYED_WORST", 1)
    monkeypatch.setattr(report_page, "PLAYED_SPEAKERS", 1)
    folder, places = raw
    output = tmp_path / "prepared"
    words = ["--input", str(folder), "--output", str(output), "--asr", tiny_en()]
    words += ["--num-workers", "1"]
    assert main(words) == 0
    assert "rejected, no speech: 1 (silence: 3.0 s without speech)" in capsys.readouterr().out

    rows, rejected = lines(output / MANIFEST), lines(output / REJECTED)
    assert {row["reason"] for row in rejected} == {"no speech", "unreadable", "missing"}
    long = [row for row in rows if row["audio"] == str(folder / "long.flac")]
    # Each clip is in one segment whole, and no segment has a part of one.
    assert len(long) == len(places)
    for row, (start, end) in zip(long, places, strict=True):
        assert start - 0.2 < row["start"] < start + 0.1
        assert end - 0.1 < row["end"] < end + 0.2
        assert row["id"].startswith("long-")
    said = [normalize_english(clip.text) for clip in SPOKEN]
    heard = error_rate("word", said, [normalize_english(row["text"]) for row in long])
    assert heard.rate < 0.2
    # Two voices, whose names the examples give.
    voices = [row["speaker"] for row in long]
    assert len(set(voices[:3])) == len(set(voices[3:])) == 1
    assert voices[0] != voices[3]

    report = json.loads((output / REPORT).read_text("utf-8"))
    assert report["files_skipped"] == {".txt": 1}
    assert report["rows_out"] == len(rows)
    assert report["hours_out"] + report["hours_rejected"] + report["hours_between"] == (
        pytest.approx(report["hours_in"])
    )

    # A person's word, without transcribing again.
    given = tmp_path / "given.jsonl"
    first, second = ({"id": row["id"], "was": row["text"]} for row in rows[:2])
    words_of = [first | {"text": "As it was said."}, second | {"verdict": "wrong"}]
    given.write_text("".join(json.dumps(line) + "\n" for line in words_of), "utf-8")
    assert main([*words, "--corrections", str(given), "--segments", "files"]) == 0
    corrected = lines(output / MANIFEST)
    assert [row["text"] for row in corrected[:2]] == ["As it was said.", rows[2]["text"]]
    assert len(corrected) == len(rows) - 1
    assert {row["reason"] for row in lines(output / REJECTED)} >= {"called wrong"}

    # Resumed with some segments left to transcribe: the same rows, and that word stays. A recording
    # that could not be read is now, and changes nothing of the others.
    (folder / LATER).write_bytes(clips_of(VOICE)[11].path.read_bytes())
    (file,) = (output / "transcripts" / "rows").iterdir()
    done = pq.read_table(file)
    pq.write_table(done.slice(0, len(done) // 2), file)
    (output / MANIFEST).unlink()
    with as_tasks(TranscribeWorker):
        assert main([*words, "--segments", "files"]) == 0
    rows = lines(output / MANIFEST)
    new = [row for row in rows if row["audio"] == str(folder / LATER)]
    assert new
    assert [row for row in rows if row not in new] == corrected
    corrected = rows
    for row, file in zip(corrected, lines(output / "segments.jsonl"), strict=True):
        assert file["recording"] == {name: row[name] for name in ("audio", "start", "end")}
        assert soundfile.info(output / file["audio"]).duration == pytest.approx(
            row["seconds"], abs=0.001
        )
    assert main([*words, "--max-seconds", "10"]) == 2
    assert "max_seconds was 15.0, now 10.0" in capsys.readouterr().err

    # The encode job takes all of them: what it does with audio does not depend on this job.
    fields = {"input": str(output / MANIFEST), "output": str(tmp_path / "codes")}
    config = EncodeConfig(**fields, codec=str(CODEC))
    layout = TokenLayout(0, 4096, (4, 2, 1))
    settings = DecodeSettings(RATE, config.limits, layout, 2048 / RATE)
    decoded = decode_rows(read_rows(config), settings).to_pylist()
    assert [row["text"] for row in decoded] == [row["text"] for row in corrected]
    assert [row["reason"] for row in decoded] == [None] * len(corrected)
    assert all(row["pcm"] for row in decoded)


@pytest.mark.usefixtures("ray_cluster")
def test_ranges_in_tasks_are_those_in_turn_also_where_a_process_dies(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "long.flac"
    soundfile.write(path, np.concatenate([read_clip(clip) for clip in SPOKEN[:3]]), RATE)
    driver = os.getpid()

    def dying(measure: Measure, ranges: Sequence[Range]) -> list[Analysis | None]:
        def die(span: Range) -> Analysis | None:
            if os.getpid() != driver and span == ranges[1]:
                os._exit(1)
            return measure(span)

        return in_tasks(die, ranges)

    row = {**WHOLE_FILE, "audio": str(path)}
    expected = analyze(row, None, shortest=4)
    for spread in (in_tasks, dying):
        found = analyze(row, None, spread=spread, shortest=4)
        assert ("a range failed" in caplog.text) == (spread is dying)
        assert (found.count, found.peak) == (expected.count, expected.peak)
        assert found.levels.tolist() == expected.levels.tolist()
        assert found.probabilities.tolist() == expected.probabilities.tolist()
