"""Recordings that were replaced, and what else may differ when a preparation goes on."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from helpers.example import DEMO, ROOT, VOICE, clips_of, load_script
from helpers.opened import record_files
from helpers.recogniser import tiny_en
from sheen import blocks
from sheen.prepare.changes import STATES, Result, changed_recordings, note_files
from sheen.prepare.config import PrepareConfig
from sheen.prepare.inputs import Planned, source_table
from sheen.prepare.job import _changed
from sheen.prepare.manifest import SEGMENT_BITS, Segments
from sheen.prepare.output import (
    CUT_SCHEMA,
    CUTS,
    RUN_FILE,
    SEGMENT_SCHEMA,
    TRANSCRIPT_SCHEMA,
    TRANSCRIPTS,
    check_device,
    has_transcripts,
    prepare_output,
)
from sheen.prepare.sources import Source, Sources
from sheen.prepare.stages.pipelines import _done
from sheen.storage.files import LFS_POINTER

LIMIT_S = 60.0

main = load_script(ROOT / "jobs" / "prepare.py").main


@pytest.fixture
def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return record_files(monkeypatch)


def made(folder: Path, *names: str) -> list[Source]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(f"recording {name}".encode())
    return [Source(f"local://{folder / name}", name) for name in names]


def config(output: Path, **fields: object) -> PrepareConfig:
    return PrepareConfig(input=[str(DEMO)], output=str(output), **fields)  # type: ignore[arg-type]


def changed(output: Path, sources: list[Source]) -> list[int]:
    return _changed(str(output), config(output), Planned(Sources(sources), {}, {}))


def cut(output: Path, sources: list[Source], reasons: dict[int, str | None]) -> None:
    """As a task does, with these reasons by place."""
    table = source_table(Sources(sources)).to_pylist()
    rows = [row | {"reason": reasons[row["key"]]} for row in table if row["key"] in reasons]
    note_files(rows, LIMIT_S)
    blocks.commit(str(output / CUTS), pa.Table.from_pylist(rows, schema=CUT_SCHEMA))


def test_of_all_recordings_the_replaced_ones_are_found(
    tmp_path: Path, files_opened: list[str]
) -> None:
    """Also one of many, whose results would be those of the old one. What they are known by, those
    that cut them note: here only what looks different is opened, once."""
    raw, output = tmp_path / "raw", tmp_path / "out"
    sources = made(raw, *map(str, range(40)))
    assert changed(output, sources) == []
    assert not files_opened
    cut(output, sources, dict.fromkeys(range(30)))
    assert len(files_opened) == 30
    files_opened.clear()
    assert changed(output, sources) == []
    assert not files_opened
    assert not (output / STATES).exists()
    for name in ("3", "4"):
        os.utime(raw / name, ns=(1, 1))
    for _ in range(2):
        assert changed(output, sources) == []
        assert sorted(files_opened) == [str(raw / "3"), str(raw / "4")]
    before = (output / STATES).read_bytes()
    (raw / "7").write_bytes(b"recording 8")  # of the same length
    (raw / "9").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"--input .*raw/7 \(and 1 more\): it is another rec"):
        changed(output, sources)
    assert (output / STATES).read_bytes() == before
    made(raw, "7", "9")  # put back
    assert changed(output, sources) == []
    # What there are no results of may change.
    (raw / "35").write_bytes(b"downloaded whole now")
    assert changed(output, sources) == []


def test_a_recording_is_known_by_its_content_and_not_by_its_place_or_time(tmp_path: Path) -> None:
    sources = made(tmp_path / "a", "1", "2", "3")
    (tmp_path / "a" / "2").write_bytes(LFS_POINTER + b"1\n")
    cut(tmp_path, sources, {0: None, 1: "missing", 2: None})
    moved = made(tmp_path / "b", "1", "2", "3")
    os.utime(tmp_path / "b" / "1", ns=(1, 1))
    (tmp_path / "b" / "3").unlink()
    assert changed(tmp_path, moved) == [1]
    # Rows of one file have one content.
    inside = [Source(moved[0].location, name) for name in ("1", "x")]
    cut(tmp_path / "rows", inside, {1: None})
    (tmp_path / "b" / "1").write_bytes(b"other rows")
    with pytest.raises(ValueError, match=r"b/1: it is another recording"):
        changed(tmp_path / "rows", inside)


def test_a_rejected_recording_is_cut_again_when_it_is_another(tmp_path: Path) -> None:
    """However often a run ends between finding that and cutting it."""
    raw = tmp_path / "raw"
    sources = made(raw, "good", "broken", "silent", "crash", "new")
    reasons = {0: None, 1: "unreadable", 2: "no speech", 3: "decoder crashed"}
    cut(tmp_path, sources, reasons)
    folder, table = str(tmp_path / CUTS), source_table(Sources(sources))
    for name in ("broken", "crash", "new"):
        (raw / name).write_bytes(b"whole")
    for _ in range(2):
        assert (found := changed(tmp_path, sources)) == [1, 3]
    assert _done(folder, table, "recordings", found).tolist() == [0, 2]
    assert _done(folder, table, "recordings", []).tolist() == [0, 1, 2, 3]
    cut(tmp_path, sources, {1: None, 3: "decoder crashed", 4: None})
    assert changed(tmp_path, sources) == []
    (raw / "good").write_bytes(b"replaced")
    with pytest.raises(ValueError, match=r"--input .*good: it is another recording"):
        changed(tmp_path, sources)


def test_what_could_not_be_noted_is_cut_again_or_noted_later(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    sources = made(raw, "good", "hung", "gone")
    kept = [(raw / source.name).rename(tmp_path / source.name) for source in sources]
    os.mkfifo(raw / "hung")
    cut(tmp_path, sources, {0: None, 1: "decoder hung", 2: "unreadable"})
    for path in kept[:2]:
        path.replace(raw / path.name)
    for _ in range(2):
        assert changed(tmp_path, sources) == [1]
    (raw / "good").write_bytes(b"replaced")
    with pytest.raises(ValueError, match=r"--input .*good: it is another recording"):
        changed(tmp_path, sources)


@pytest.mark.slow
def test_a_recording_that_does_not_answer_is_rejected_and_cut_when_it_does(tmp_path: Path) -> None:
    """As those of a hung mount. All others are noted, and a resumed run waits for it as little."""
    good = made(tmp_path / "raw", *map(str, range(40)))
    table = source_table(Sources(good)).to_pylist()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        hung = [{"key": -1, "audio": f"{address}/{name}.wav", "name": name} for name in "ab"]
        rows = [hung[0], *table, hung[1] | {"reason": "decoder crashed"}]
        note_files(rows, 3.0)
        assert [row["key"] for row in rows if row["file"] is None] == [-1, -1]
        assert [row.get("reason") for row in rows] == [
            "decoder hung", *[None] * len(good), "decoder crashed",
        ]  # fmt: skip
        assert rows[0]["detail"] == f"{address}/a.wav: nothing could be read of it in 3 s"

        sources = dict(enumerate([*good, Source(f"{address}/a.wav", "a")]))
        was = [Result(row["key"], True, row["file"]) for row in table]
        results = [*was, Result(len(good), False, None)]
        assert changed_recordings(str(tmp_path), sources, results, 3.0) == []
    sources[len(good)] = made(tmp_path / "raw", "a")[0]
    assert changed_recordings(str(tmp_path), sources, results, LIMIT_S) == [len(good)]


@pytest.mark.parametrize("check", [False, True])
def test_the_recordings_of_rows_are_compared_too(tmp_path: Path, check: bool) -> None:
    """Which are transcribed as they are, or cut before: their keys are their sources' then."""
    bits = 0 if check else SEGMENT_BITS
    sources = made(tmp_path / "raw", "heard", "unread")
    rows = [
        {"key": 5 + place, "id": source.name, "audio": source.location, "reason": reason}
        for place, (source, reason) in enumerate(zip(sources, (None, "unreadable"), strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=SEGMENT_SCHEMA)
    planned = Planned(Sources(sources), {}, {}, Segments(table, []))
    settings, folder = config(tmp_path, check=check), str(tmp_path / TRANSCRIPTS)
    assert _changed(str(tmp_path), settings, planned) == []
    done = [row | {"key": row["key"] << bits} for row in rows]
    note_files(done, LIMIT_S)
    blocks.commit(folder, pa.Table.from_pylist(done, schema=TRANSCRIPT_SCHEMA))
    (tmp_path / "raw" / "unread").write_bytes(b"whole")
    found = _changed(str(tmp_path), settings, planned)
    assert found == [6]
    assert _done(folder, table, "segments", found, bits).tolist() == [5 << bits]
    (tmp_path / "raw" / "heard").write_bytes(b"replaced")
    with pytest.raises(ValueError, match=r"--input .*heard: it is another recording"):
        _changed(str(tmp_path), settings, planned)


@pytest.mark.parametrize(
    "other",
    [{"start": 0.5}, {"end": 2.0}, {"channel": 1}, {"container": "tar"}, {"place": [512, 9]}],
)
def test_rows_of_other_parts_are_another_preparation(tmp_path: Path, other: dict[str, Any]) -> None:
    """A changed text is not: it needs no new transcription."""
    sources = [Source("/raw/1.mp3", "1")]
    row = {"key": 0, "id": "1", "audio": "/raw/1.mp3", "start": 0.0, "given": "One."}

    def prepare(row: dict[str, Any]) -> None:
        table = pa.Table.from_pylist([row], schema=SEGMENT_SCHEMA)
        prepare_output(str(tmp_path), config(tmp_path), sources, table)

    prepare(row)
    (tmp_path / CUTS).mkdir()
    prepare(row | {"given": "Two."})
    with pytest.raises(ValueError, match="parts of the recordings was"):
        prepare(row | other)


def test_the_asr_may_change_until_something_is_transcribed(tmp_path: Path) -> None:
    """A wrong one is found when all recordings have been cut, and those cuts are good."""
    sources = [Source("/raw/1.mp3", "1")]
    for fields in ({"asr": "owner/torn"}, {"asr": "tiny", "language": "en"}, {"dnsmos": True}):
        prepare_output(str(tmp_path), config(tmp_path, **fields), sources)
        (tmp_path / CUTS).mkdir(exist_ok=True)
        check_device(str(tmp_path), gpu="asr" in fields)
    with pytest.raises(ValueError, match=r"max_seconds was 15\.0, now 12\.0"):
        prepare_output(str(tmp_path), config(tmp_path, max_seconds=12), sources)
    (tmp_path / TRANSCRIPTS / "rows").mkdir(parents=True)
    assert not has_transcripts(str(tmp_path))
    (tmp_path / TRANSCRIPTS / "rows" / "0.parquet").touch()
    assert has_transcripts(str(tmp_path))
    prepare_output(str(tmp_path), config(tmp_path, dnsmos=True), sources)
    with pytest.raises(ValueError, match=r"asr was 'base', now 'tiny'; dnsmos was True"):
        prepare_output(str(tmp_path), config(tmp_path, asr="tiny"), sources)
    # A GPU writes other transcripts than a CPU.
    check_device(str(tmp_path), gpu=False)
    with pytest.raises(ValueError, match=r"transcribed on a CPU, .* GPU; give --no-gpu"):
        check_device(str(tmp_path), gpu=True)
    assert json.loads((tmp_path / RUN_FILE).read_bytes())["device"] == "CPU"


def test_a_run_that_only_looked_at_its_recordings_is_forgotten(tmp_path: Path) -> None:
    sources = made(tmp_path / "raw", "1")
    output = tmp_path / "out"
    prepare_output(str(output), config(output, max_seconds=10), sources)
    assert changed(output, sources) == []
    prepare_output(str(output), config(output, max_seconds=12), sources)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--language", "de"],
            "--language: ASR model '.*' does not know language 'de'; it knows en",
        ),
        (["--max-overlap", "0.1"], "--max-overlap needs --overlap"),
        (["--segments", "files", "--output", "{raw}/out"], "--output .*/out is in --input"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_cut(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "1.opus").write_bytes(clips_of(VOICE)[8].path.read_bytes())
    words = ["--input", str(raw), "--output", str(tmp_path / "out"), "--asr", tiny_en()]
    words += [flag.format(raw=raw) for flag in flags]
    assert main([*words, "--no-num-speakers"]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists()
    assert [path.name for path in raw.iterdir()] == ["1.opus"]
