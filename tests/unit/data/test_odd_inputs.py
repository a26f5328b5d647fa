"""Corpora as other tools and systems leave them, through the jobs' doors: the rows and recordings
that they mean, or a message that names what is wrong and what to do."""

import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.corpora import (
    CLIPS,
    HF_AUDIO,
    Row,
    by_parquet,
    by_webdataset,
    jsonl,
    prepared,
    refused,
    sound,
    verdicts,
    with_audio,
)
from helpers.example import CHECKPOINT, CODEC, ROOT, load_script
from sheen.codec.info import describe_codec
from sheen.data.corpus import check_outside
from sheen.data.recordings import RecordingReader
from sheen.encode.config import EncodeConfig
from sheen.encode.output import prepare_output, read_rows
from sheen.prepare.changes import note_files
from sheen.prepare.config import PrepareConfig
from sheen.prepare.inputs import find_input, plan_corpus
from sheen.prepare.job import _check_places
from sheen.storage import uris
from sheen.train.codec.data import find_recordings

encode = load_script(ROOT / "jobs" / "encode.py").main
evaluate = load_script(ROOT / "jobs" / "evaluate.py").main
prepare = load_script(ROOT / "jobs" / "prepare.py").main


def encode_refuses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return refused(
        encode, capsys, "--input", str(folder), "--output", f"{tmp_path}/out", "--codec", str(CODEC)
    )


@pytest.fixture
def ljspeech(tmp_path: Path) -> Path:
    """A folder of three recordings, for a metadata.csv."""
    folder = tmp_path / "corpus"
    (folder / "wavs").mkdir(parents=True)
    for name in CLIPS:
        (folder / "wavs" / f"{name}.flac").write_bytes(sound(name))
    return folder


def write(folder: Path, metadata: str | bytes) -> Path:
    data = metadata if isinstance(metadata, bytes) else metadata.encode()
    (folder / "metadata.csv").write_bytes(data)
    return folder


# LJSpeech folders


@pytest.mark.parametrize(
    "metadata",
    [
        "clip-1|four five|heart\nclip-2|eight seven seven|heart\nclip-3|one six|heart\n",
        "clip-1|four five|heart\nclip-2|eight seven seven|bf_alice\n",
        "clip-1|4 5|heart\nclip-2|8 7 7|heart\nclip-3|1 6 8 9|heart\na|3|heart\nb|4|heart\n",
        "clip-1|four | five\n",
        "clip-1|four five|wavs/clip-1.flac\nclip-2|eight seven seven|wavs/clip-2.flac\n",
    ],
    ids=["one speaker", "two speakers", "speakers and numbers", "a | in the text", "paths"],
)
def test_a_third_column_of_something_else_is_refused(
    metadata: str, ljspeech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = encode_refuses(write(ljspeech, metadata), tmp_path, capsys)
    assert "metadata.csv: line 1: the third field must be the text as it is spoken" in message
    assert "id|text||speaker" in message


def test_a_fourth_column_of_seconds_is_refused(
    ljspeech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = "clip-1|four five|four five|1.02\nclip-2|eight seven|eight seven|1.5\n"
    message = encode_refuses(write(ljspeech, metadata), tmp_path, capsys)
    assert "'1.02' seems to be a length in seconds" in message


def test_spoken_forms_are_no_speakers(ljspeech: Path) -> None:
    pairs = [
        ("Dr. Smith paid $5.20 in 1999.", "Doctor Smith paid five dollars twenty in nineteen..."),
        ("4 5", "four five"),
        ("№ 7", "number seven"),
        ("etc.", "et cetera"),
        ("それは3つある。", "それはみっつある。"),
        ("Größe: 5 m²", "größe fünf quadratmeter"),
    ]
    lines = [f"clip-1|{text}|{spoken}\n" for text, spoken in pairs]
    rows = prepared(write(ljspeech, "".join(lines)))
    assert [row["text"] for row in rows] == [spoken for _, spoken in pairs]
    # With four fields nothing is guessed.
    rows = prepared(write(ljspeech, "clip-1|漢字|かんじ|\nclip-2|eight|acht|ann\n"))
    assert [(row["text"], row["speaker"]) for row in rows] == [("かんじ", None), ("acht", "ann")]


def test_one_odd_third_field_among_good_ones_is_a_row(ljspeech: Path) -> None:
    lines = [f"clip-{n}|number {n} is four|number {n} is four\n" for n in (1, 2)]
    rows = prepared(write(ljspeech, f"{''.join(lines)}clip-3|one six | eight nine\n"))
    assert verdicts(rows)[2] == ("clip-3", "malformed row")
    assert "is '|' part of the text?" in rows[2]["detail"]
    assert [reason for _, reason in verdicts(rows)[:2]] == [None, None]


NAMES = {
    "the folder with it": ("wavs/clip-1.flac", "clip-1.flac"),
    "the folder from here": ("./wavs/clip-1", "clip-1.flac"),
    "another suffix": ("clip-1.wav", "clip-1.flac"),
    "a folder below": ("heart/0001", "heart/0001.flac"),
    "a decomposed file": ("é", unicodedata.normalize("NFD", "é.flac")),
    "a decomposed id": (unicodedata.normalize("NFD", "é"), "é.flac"),
} | {suffix: ("a", f"a{suffix}") for suffix in (".oga", ".AIFF", ".sph", ".mp4", ".caf", ".wma")}


@pytest.mark.parametrize(("name", "file"), NAMES.values(), ids=NAMES)
def test_an_odd_id_finds_its_recording(name: str, file: str, tmp_path: Path) -> None:
    path = tmp_path / "corpus" / "wavs" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(sound(CLIPS[0]))  # whatever its suffix says
    (row,) = prepared(write(tmp_path / "corpus", f"{name}|four five\n"))
    assert row["reason"] is None, row["detail"]
    assert row["audio"] == str(path)


def test_two_names_that_look_alike_are_two_recordings(tmp_path: Path) -> None:
    (tmp_path / "wavs").mkdir()
    names = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    for name, clip in zip(names, CLIPS, strict=False):
        (tmp_path / "wavs" / f"{name}.flac").write_bytes(sound(clip))
    rows = prepared(write(tmp_path, "".join(f"{name}|four five\n" for name in names)))
    assert [row["audio"] for row in rows] == [f"{tmp_path}/wavs/{name}.flac" for name in names]


def test_a_recording_that_is_not_there_is_told_by_what_is(ljspeech: Path) -> None:
    (ljspeech / "wavs" / "x.txt").touch()
    rows = prepared(write(ljspeech, "clip-1|four five\nx|one two\ny|one two\n"))
    assert verdicts(rows) == [("clip-1", None), ("x", "missing"), ("y", "missing")]
    assert "x.txt is there, whose suffix is not one of audio" in rows[1]["detail"]
    assert f"no recording 'y' in {ljspeech}/wavs" in rows[2]["detail"]


@pytest.mark.parametrize(
    ("name", "file"),
    [("x", "x.flac"), ("a.2", "a.2.flac"), ("x.wav", "x.flac"), ("wavs/x.flac", "x.flac"),
     ("below/x", "below/x.oga")],
)  # fmt: skip
def test_a_recording_that_comes_later_makes_the_same_row(
    name: str, file: str, ljspeech: Path
) -> None:
    """So that the same command takes it, and is not refused for another input."""
    write(ljspeech, f"clip-1|four five\n{name}|one two\n")
    config = EncodeConfig(input=[str(ljspeech)], output=f"{ljspeech}/out")
    codec = describe_codec(str(CODEC))
    before = read_rows(config)
    prepare_output(config.output, config, before, codec, ())
    (ljspeech / "out" / "blocks").mkdir()  # it has begun
    path = ljspeech / "wavs" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(sound(CLIPS[1]))
    after = read_rows(config)
    assert [table["reason"].to_pylist()[1] for table in (before, after)] == ["missing", None]
    prepare_output(config.output, config, after, codec, ())


@pytest.mark.parametrize("part", [{"end": 0.5}, {"offset": 0.1}, {"audio_channel": 0}], ids=str)
def test_another_part_of_a_recording_is_another_encoding(
    part: dict[str, Any], tmp_path: Path
) -> None:
    codec = describe_codec(str(CODEC))
    row = {"audio": "a.flac", "text": "four five"}
    config = EncodeConfig(input=[str(tmp_path / "rows.jsonl")], output=f"{tmp_path}/out")
    jsonl(tmp_path / "rows.jsonl", [row])
    prepare_output(config.output, config, read_rows(config), codec, ())
    (tmp_path / "out" / "blocks").mkdir()  # it has begun
    jsonl(tmp_path / "rows.jsonl", [row | part])
    with pytest.raises(ValueError, match="is of another encoding"):
        prepare_output(config.output, config, read_rows(config), codec, ())


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_manifest_finds_names_in_either_normal_form(form: Any, tmp_path: Path) -> None:
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    folder = tmp_path / unicodedata.normalize(other, "é")
    folder.mkdir()
    (folder / "a.flac").write_bytes(sound(CLIPS[0]))
    path = jsonl(
        tmp_path / "rows.jsonl",
        [{"audio": unicodedata.normalize(form, "é/a.flac"), "text": "four five"}],
    )
    assert verdicts(prepared(path)) == [("line-1", None)]
    assert verdicts(prepared(jsonl(folder / "b.jsonl", [{"audio": "a.flac", "text": "one two"}])))


def test_a_file_name_that_is_not_utf8_harms_no_other_row(
    ljspeech: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stray = os.fsencode(ljspeech / "wavs") + b"/caf\xe9.flac"
    shutil.copy(os.fsencode(ljspeech / "wavs" / "clip-1.flac"), stray)
    rows = prepared(write(ljspeech, "clip-1|four five\nclip-2|eight seven seven\n"))
    assert verdicts(rows) == [("clip-1", None), ("clip-2", None)]
    assert any(
        "skipped 1 files or folders" in told and "caf\\xe9" in told for told in caplog.messages
    )
    (ljspeech / "metadata.csv").unlink()
    found = find_recordings(str(ljspeech), held_out=1, seed=0)
    assert len(found.train) == 2
    jsonl(ljspeech / "rows.jsonl", [{"audio": "wavs/clip-1.flac", "text": "four five"}])
    assert verdicts(prepared(ljspeech)) == verdicts(prepared(f"{ljspeech}/**/*.jsonl"))


# Links


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A snapshot as the Hugging Face hub's client keeps it: links to files named by their hash."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    blobs.mkdir()
    rows = [{"audio": f"{name}.flac", "text": "four five"} for name in CLIPS]
    jsonl(blobs / "0123", rows)
    (snapshot / "metadata.jsonl").symlink_to("../../blobs/0123")
    for name in CLIPS:
        (blobs / f"{name}-hash").write_bytes(sound(name))
        (snapshot / f"{name}.flac").symlink_to(f"../../blobs/{name}-hash")
    by_parquet(blobs, [{"text": "four five"}, {"text": "eight seven seven"}])
    (snapshot / "data" / "train-0.parquet").symlink_to("../../../blobs/rows.parquet")
    return snapshot


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("metadata.jsonl", 3), ("*.jsonl", 3), ("data/train-0.parquet", 2), ("data/*.parquet", 2),
        ("data", 2), ("data/../metadata.jsonl", 3),
    ],
)  # fmt: skip
def test_a_link_keeps_its_name(
    path: str, count: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [row["reason"] for row in prepared(f"{cache}/{path}")] == [None] * count
    monkeypatch.chdir(cache)
    assert [row["reason"] for row in prepared(path)] == [None] * count


def test_a_file_by_two_links_is_named_twice(cache: Path) -> None:
    (cache / "again.jsonl").symlink_to("metadata.jsonl")
    with pytest.raises(ValueError, match=r"metadata\.jsonl: named twice"):
        prepared(f"{cache}/*.jsonl")


def test_an_output_within_the_input_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    assert uris.contains(str(tmp_path / "real"), str(tmp_path / "link" / "out"))
    assert not uris.contains(str(tmp_path / "real"), str(tmp_path / "other"))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_an_output_that_would_be_read_as_input_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run would find other rows; and --jsonl would replace the rows of the first."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows: list[Row] = [{"audio": "a.wav", "text": "four five"}]
    if name.endswith("jsonl"):
        jsonl(folder / name, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    before = (folder / name).read_bytes()
    out, inside = f"{tmp_path}/out", f"{folder}/out"
    for given in (folder, folder / name, folder / f"*.{name.partition('.')[2]}"):
        words = ["--input", str(given), "--codec", str(CODEC)]
        whole = given == folder
        for flags in (
            ["--output", inside] if whole else None,
            ["--output", out, "--jsonl", f"{folder}/codes.jsonl"] if whole else None,
            ["--output", out, "--jsonl", f"{folder}/{name}"],
        ):
            if flags is not None:
                message = refused(encode, capsys, *words, *flags)
                assert f"{flags[-2]} {flags[-1]} is in --input {given}, where" in message
    message = refused(prepare, capsys, "--input", str(folder), "--output", inside)
    assert f"--output {inside} is in --input {folder}, where" in message
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert [path.name for path in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == before


def test_an_output_in_an_ljspeech_folder_is_no_input(ljspeech: Path) -> None:
    write(ljspeech, "clip-1|four five\n")
    check_outside("--output", f"{ljspeech}/out", [str(ljspeech)])


@pytest.mark.parametrize("audio", ["bogus://host/a.wav", "a\0b.wav"])
def test_a_place_that_nothing_can_open_is_the_fault_of_its_row(audio: str, tmp_path: Path) -> None:
    manifest = jsonl(tmp_path / "rows.jsonl", [{"audio": audio, "text": "four five"}])
    assert [row["reason"] for row in prepared(manifest)] == ["not read"]
    config = PrepareConfig(input=[str(manifest)], output=f"{tmp_path}/out")
    _check_places(config, config.output, find_input(config))
    rows = plan_corpus([str(manifest)]).table.to_pylist()
    note_files(rows, 60.0)
    assert (rows[0]["file"], rows[0]["reason"]) == (None, None)


def test_links_that_lead_back_are_followed_once(ljspeech: Path) -> None:
    (ljspeech / "wavs" / "up").symlink_to("..")
    (ljspeech / "wavs" / "gone.flac").symlink_to("nowhere.flac")
    rows = prepared(write(ljspeech, "clip-1|four five\ngone|one two\n"))
    assert verdicts(rows) == [("clip-1", None), ("gone", "missing")]


def test_two_dots_after_a_link_mean_the_folder_above_its_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    assert uris.absolute("link/../x") == f"{tmp_path}/a/x"
    assert uris.absolute("link/x/./y") == f"{tmp_path}/link/x/y"
    assert uris.absolute("a/../link") == f"{tmp_path}/link"


def test_an_id_may_be_a_number_of_any_size(tmp_path: Path) -> None:
    """As hashes are written, and larger than any float."""
    manifest = jsonl(tmp_path / "rows.jsonl", [{"audio": "a.wav", "text": "one", "id": 10**400}])
    config = EncodeConfig(input=[str(manifest)], output="unused")
    assert read_rows(config)["id"].to_pylist() == [str(10**400)]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("name", ["metadata.csv", "rows.jsonl"])
def test_another_encoding_is_named_as_what_it_is(
    name: str, encoding: str, ljspeech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = json.dumps({"audio": "wavs/clip-1.flac", "text": "café"}, ensure_ascii=False)
    text = "clip-1|café\n" if name == "metadata.csv" else row
    (ljspeech / name).write_bytes(text.encode(encoding))
    message = encode_refuses(ljspeech, tmp_path, capsys)
    assert f"{ljspeech}/{name}: line 1 is not UTF-8" in message
    advised = message.partition("iconv -f ")[2].partition(" ")[0]
    assert text.encode(encoding).decode(advised) == text


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        (
            '{"text": "four two"}\n{"text": "\\ud83d one"}\n',
            r"line 2: text holds half of a surrogate pair, '\ud83d'",
        ),
        (
            '{"text": "four two", "speaker": "\\ud83d"}\n',
            "line 1: speaker holds half of a surrogate pair",
        ),
        ('{"text": "four two", "id": ["a"]}\n', "line 1: id must be a string or a number"),
    ],
)
def test_a_prompt_that_cannot_be_written_is_named(
    prompts: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(prompts, "utf-8")
    message = refused(
        evaluate, capsys, "--model", str(CHECKPOINT), "--prompts", str(path), "--no-asr",
        "--output", f"{tmp_path}/out",
    )  # fmt: skip
    assert f"--prompts: {path}, {told}" in message


# Ids that begin anew in each file


def test_shards_that_number_their_samples_alike_lose_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [{"text": "four five"}, {"text": "eight seven seven"}]
    for folder, shard in (("a", "0.tar"), ("a", "1.tar"), ("b", "0.tar")):
        (tmp_path / folder).mkdir(exist_ok=True)
        by_webdataset(tmp_path / folder, rows, shard)
    found = prepared(tmp_path)
    assert verdicts(found) == [
        (f"{shard}/{name}", None) for shard in ("a/0", "a/1", "b/0") for name in CLIPS[:2]
    ]
    with RecordingReader() as reader:
        assert [reader.read(row) for row in found] == [sound(name) for name in CLIPS[:2]] * 3
    assert "3 files have ids that are in other files too" in caplog.text


def test_folders_of_one_speaker_each_may_number_their_recordings_alike(tmp_path: Path) -> None:
    for speaker, clip in (("ann", CLIPS[0]), ("bob", CLIPS[1])):
        (tmp_path / speaker / "wavs").mkdir(parents=True)
        (tmp_path / speaker / "wavs" / "1.flac").write_bytes(sound(clip))
        write(tmp_path / speaker, f"1|four five\n1|again\n2-{speaker}|one\n")
    assert verdicts(prepared(f"{tmp_path}/*")) == [
        ("ann/1", None), ("ann/1", "duplicate id"), ("ann/2-ann", "missing"),
        ("bob/1", None), ("bob/1", "duplicate id"), ("bob/2-bob", "missing"),
    ]  # fmt: skip


def test_one_recording_in_two_lists_is_one(tmp_path: Path) -> None:
    rows = with_audio(
        [{"text": "four five", "id": "x"}, {"text": "eight", "id": "y"}], "audio", tmp_path
    )
    paths = [jsonl(tmp_path / "b.jsonl", rows), jsonl(tmp_path / "a.jsonl", rows[:1])]
    assert verdicts(prepared(*paths)) == [("b/x", None), ("b/y", None), ("a/x", "duplicate id")]


# Memory


@pytest.mark.slow
def test_a_clip_of_a_large_row_group_takes_the_memory_of_a_few(tmp_path: Path) -> None:
    """Where its pages are small. Of a single page all must be decoded."""
    size, count = 150_000, 400
    draws = np.random.default_rng(0)
    audio = pa.array([{"bytes": draws.bytes(size)} for _ in range(count)], HF_AUDIO)
    table = pa.table({"audio": audio, "text": ["one"] * count})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=count, write_batch_size=4)
    expected = [row["bytes"] for row in audio.to_pylist()]
    del table, audio
    rows = read_rows(EncodeConfig(input=str(tmp_path), output="unused")).to_pylist()
    with RecordingReader() as reader:
        before = pa.total_allocated_bytes()
        for place in (0, 1, 399, 7, 200):
            assert reader.read(rows[place]) == expected[place]
            assert pa.total_allocated_bytes() - before < size * count / 2
