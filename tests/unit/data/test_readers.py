"""Inputs of every form: what they give, how they are recognised, and the faults each may have."""

import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheen.data.corpus import MANIFEST_SCHEMA, plain_rows, read_manifest
from sheen.data.readers.forms import FORMS
from sheen.encode.config import EncodeConfig

HF_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GOOD = {"audio": "a.wav", "text": "one"}
CODES = [[1, 2], [3, 4, 5, 6], [7] * 8]


def read(
    location: Path | str | Sequence[str], limit: int | None = None, form: str | None = None
) -> list[dict[str, Any]]:
    table = read_manifest(str(location) if isinstance(location, Path) else location, limit, form)
    assert table.schema == MANIFEST_SCHEMA
    rows: list[dict[str, Any]] = table.to_pylist()
    assert [row["key"] for row in rows] == list(range(len(rows)))
    return rows


def error(location: Path | str | Sequence[str], form: str | None = None) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (callers check the message)
        read_manifest(str(location) if isinstance(location, Path) else location, form=form)
    return str(caught.value)


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(row["id"], row["reason"]) for row in rows]


def write_lines(path: Path, *lines: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


def write_parquet(path: Path, columns: dict[str, Any], rows_per_group: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return path


def embedded(count: int) -> pa.Array:
    return pa.array([{"bytes": b"%d" % n, "path": f"{n}.wav"} for n in range(count)], HF_AUDIO)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], form: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form or tarfile.PAX_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def clips(*names: str) -> list[tuple[str, bytes]]:
    """Two members for each name, as shards are mostly written."""
    pairs = [((f"{name}.wav", b"RIFF" + name.encode()), (f"{name}.txt", b"one")) for name in names]
    return [member for pair in pairs for member in pair]


# Part of a recording


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ({"start": 1.5, "end": 2}, (1.5, 2.0)),
        ({"start": 0}, (0.0, None)),
        ({"end": 0.25}, (None, 0.25)),
        ({"start": None, "end": None}, (None, None)),
        ({"start": float("nan"), "end": float("nan")}, (None, None)),
        ({"offset": 1.5, "duration": 2}, (1.5, 3.5)),
        ({"offset": 1.5, "duration": 2, "end": 2.0}, (None, 2.0)),
        ({"duration": 2}, (None, None)),
    ],
)
def test_start_and_end_are_seconds(
    tmp_path: Path, span: dict[str, Any], expected: tuple[float | None, float | None]
) -> None:
    (row,) = read(write_lines(tmp_path / "m.jsonl", GOOD | span))
    assert (row["start"], row["end"], row["reason"]) == (*expected, None)


@pytest.mark.parametrize(
    "span",
    [
        {"start": -1},
        {"start": 2, "end": 2},
        {"start": 2, "end": 1},
        {"end": 0},
        {"start": "1"},
        {"end": True},
        {"end": float("inf")},
        {"start": 10**400},
    ],
)
def test_a_faulty_span_is_a_counted_reject(tmp_path: Path, span: dict[str, Any]) -> None:
    rows = read(write_lines(tmp_path / "m.jsonl", GOOD | span, GOOD))
    assert verdicts(rows) == [("line-1", "malformed row"), ("line-2", None)]
    assert list(span)[-1] in rows[0]["detail"]
    assert rows[0]["audio"] is rows[0]["start"] is rows[0]["end"] is None


def test_half_a_surrogate_pair_is_a_counted_reject(tmp_path: Path) -> None:
    lines = [GOOD | {"text": "\ud800"}, GOOD | {"id": "\udfff"}, GOOD]
    rows = read(write_lines(tmp_path / "m.jsonl", *lines))
    assert [row["reason"] for row in rows] == ["malformed row", "malformed row", None]


def test_a_speaker_named_0_is_a_speaker(tmp_path: Path) -> None:
    (row,) = read(write_lines(tmp_path / "m.jsonl", GOOD | {"speaker": 0}))
    assert row["speaker"] == "0"


# Rows that bring their codes


def test_lines_with_codes_are_recognised_by_the_first(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "codes.jsonl",
        {"text": "one", "snac_codes": CODES, "id": "a", "speaker": "ann"},
        {"text": "two", "snac_codes": [[0], [1, 32767], []]},
    )
    rows = read(path)
    assert verdicts(rows) == [("a", None), ("line-2", None)]
    assert [row["snac_codes"] for row in rows] == [CODES, [[0], [1, 32767], []]]
    assert rows[0]["speaker"] == "ann"
    assert rows[0]["audio"] is rows[0]["container"] is None


@pytest.mark.parametrize(
    "codes", [None, [], 5, "12", {"0": [1]}, [1, 2], [[1], None], [[-1]], [[32768]], [[1.0]],
              [[True]], [["1"]], [[[1]]]]
)  # fmt: skip
def test_codes_of_another_shape_are_counted(tmp_path: Path, codes: Any) -> None:
    good = {"text": "one", "snac_codes": CODES}
    path = write_lines(tmp_path / "codes.jsonl", good, good | {"snac_codes": codes}, good)
    rows = read(path)
    assert [row["reason"] for row in rows] == [None, "bad codes", None]
    assert rows[1]["detail"].startswith("line 2: snac_codes")
    assert rows[1]["snac_codes"] is None


def test_a_line_without_codes_among_codes_is_malformed(tmp_path: Path) -> None:
    rows = read(write_lines(tmp_path / "c.jsonl", {"text": "one", "snac_codes": CODES}, GOOD))
    assert [row["reason"] for row in rows] == [None, "malformed row"]
    assert '{"snac_codes": ' in rows[1]["detail"]


def test_lines_with_audio_and_codes_are_recordings_unless_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", GOOD | {"snac_codes": CODES})
    assert read(path)[0]["audio"] == f"{tmp_path}/a.wav"
    assert read(path)[0]["snac_codes"] is None
    assert read(path, form="codes")[0]["snac_codes"] == CODES


# Parquet


def test_parquet_rows_say_where_their_recordings_lie(tmp_path: Path) -> None:
    columns = {
        "audio": embedded(5),
        "text": ["a", None, "c", " ", "e"],
        "id": ["x", "y", None, "w", "x"],
        "speaker": ["ann", "", None, "bob", "ann"],
        "instruction": ["loud", "", None, "slow", None],
    }
    path = write_parquet(tmp_path / "clips.parquet", columns, rows_per_group=2)
    rows = read(path)
    assert verdicts(rows) == [
        ("x", None), ("y", "no text"), ("row-3", None), ("w", "no text"), ("x", "duplicate id")
    ]  # fmt: skip
    assert [row["place"] for row in rows] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0]]
    assert {(row["audio"], row["container"]) for row in rows} == {(str(path), "parquet")}
    assert [row["speaker"] for row in rows] == ["ann", None, None, "bob", "ann"]
    assert [row["instruction"] for row in rows] == ["loud", None, None, "slow", None]
    assert [row["source"] for row in rows] == [f"clips.parquet:{n}" for n in range(1, 6)]


@pytest.mark.parametrize("text", ["text", "transcription", "sentence", "normalized_text"])
def test_parquet_columns_have_other_names_too(tmp_path: Path, text: str) -> None:
    names = pa.array(["one", "two"]).dictionary_encode()
    columns = {"audio": embedded(2), text: names, "speaker_id": [0, 17], "id": [7, 8]}
    rows = read(write_parquet(tmp_path / "a.parquet", columns))
    assert [(row["id"], row["text"], row["speaker"]) for row in rows] == [
        ("7", "one", "0"),
        ("8", "two", "17"),
    ]


def test_a_parquet_folder_is_read_at_any_depth_in_order(tmp_path: Path) -> None:
    for number in (1, 0):
        columns = {"audio": embedded(2), "text": [f"{number}-a", f"{number}-b"]}
        write_parquet(tmp_path / "data" / f"train-0000{number}-of-00002.parquet", columns)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "hidden.parquet").touch()
    (tmp_path / "README.md").touch()
    rows = read(tmp_path)
    assert [row["text"] for row in rows] == ["0-a", "0-b", "1-a", "1-b"]
    assert verdicts(rows) == [(f"row-{n}", None) for n in (1, 2, 3, 4)]
    assert rows[3]["source"] == "train-00001-of-00002.parquet:2"
    assert [row["id"] for row in read(tmp_path, limit=3)] == ["row-1", "row-2", "row-3"]


def test_a_parquet_column_of_strings_holds_paths(tmp_path: Path) -> None:
    columns = {"audio": ["clips/a.wav", "/data/b.wav", None, "s3://b/c.wav"], "text": ["one"] * 4}
    rows = read(write_parquet(tmp_path / "a.parquet", columns, rows_per_group=3))
    assert [row["audio"] for row in rows] == [
        f"{tmp_path}/clips/a.wav", "/data/b.wav", None, "s3://b/c.wav"
    ]  # fmt: skip
    assert [row["reason"] for row in rows] == [None, None, "missing", None]
    assert {(row["container"], row["place"] is None) for row in rows} == {(None, True)}


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"text": ["one"]}, "no column 'audio'; its columns are text"),
        ({"audio": embedded(1)}, "no column for the text (text, transcription"),
        ({"audio": [b"RIFF"], "text": ["one"]}, "'audio' is binary, expected struct<bytes, path>"),
        ({"audio": embedded(1), "text": [3]}, "column 'text' is int64, expected string"),
        ({"audio": embedded(1), "text": ["a"], "id": [[1]]}, "column 'id' is list"),
    ],
)
def test_parquet_of_another_layout_is_named(
    tmp_path: Path, columns: dict[str, Any], fault: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", columns)
    assert error(path).startswith(f"{path}: ")
    assert fault in error(path)


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all")
    assert error(tmp_path / "a.parquet").startswith(
        f"{tmp_path}/a.parquet: cannot be read as Parquet"
    )


# WebDataset shards


def test_samples_are_members_that_share_a_key(tmp_path: Path) -> None:
    meta = {"text": "three", "speaker": 4, "id": "third", "instructions": "loud"}
    members = [
        ("./readme", b"no sample"),
        ("a.wav", b"RIFF-a"),
        ("a.txt", "\ufeffone é \n".encode()),
        ("deep/a.FLAC", b"fLaC-deep"),
        ("deep/a.json", json.dumps({"text": "two"}).encode()),
        ("c.json", json.dumps(meta).encode()),
        ("c.mp3", b"ID3-c"),
        ("._c.mp3", b"a Mac's"),
    ]
    path = write_tar(tmp_path / "s.tar", members)
    rows = read(path)
    assert [(row["id"], row["text"], row["speaker"], row["source"]) for row in rows] == [
        ("a", "one é", None, "s.tar:a"),
        ("deep/a", "two", None, "s.tar:deep/a"),
        ("third", "three", "4", "s.tar:c"),
    ]
    assert [row["instruction"] for row in rows] == [None, None, "loud"]
    assert {(row["audio"], row["container"], row["reason"]) for row in rows} == {
        (str(path), "tar", None)
    }
    data = path.read_bytes()
    found = [data[row["place"][0] :][: row["place"][1]] for row in rows]
    assert found == [b"RIFF-a", b"fLaC-deep", b"ID3-c"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_are_read_in_every_tar_format(tmp_path: Path, form: int) -> None:
    name = "x" * 60 + "/" + ("y" * 90 if form == tarfile.USTAR_FORMAT else "y" * 250)
    rows = read(write_tar(tmp_path / "s.tar", clips("a", name), form))
    assert verdicts(rows) == [("a", None), (name, None)]


def test_members_may_be_sorted_by_kind(tmp_path: Path) -> None:
    members = sorted(clips("a", "b", "c"), key=lambda member: member[0].rpartition(".")[2])
    path = write_tar(tmp_path / "s.tar", members)
    assert verdicts(read(path)) == [("a", None), ("b", None), ("c", None)]
    assert verdicts(read(path, limit=2)) == [("a", None), ("b", None)]


def test_faulty_samples_are_counted(tmp_path: Path) -> None:
    members = [
        ("a.txt", b"no recording"),
        ("b.wav", b"no text"),
        ("c.wav", b"x"),
        ("c.json", b"{no json"),
        ("d.wav", b"x"),
        ("d.txt", b"caf\xe9"),
        ("e.wav", b"x"),
        ("e.flac", b"x"),
        ("e.txt", b"which?"),
        ("f.wav", b"x"),
        ("f.json", b'{"text": 5}'),
        ("g.wav", b"x"),
        ("g.json", b"[]"),
        *clips("h", "h"),
    ]
    rows = read(write_tar(tmp_path / "s.tar", members))
    assert verdicts(rows) == [
        ("a", "missing"), ("b", "no text"), ("c", "malformed row"), ("d", "malformed row"),
        ("e", "malformed row"), ("f", "malformed row"), ("g", "malformed row"), ("h", None),
        ("h", "duplicate id"),
    ]  # fmt: skip
    assert "wav, flac" in rows[4]["detail"]


@pytest.mark.parametrize(
    ("cut", "lost"),
    [
        (-512, "row-3"),  # before the header of c.wav: nothing says that there was a c
        (-200, "row-3"),  # within it
        (2, "row-3"),  # within the recording
        (512, "c"),  # before the header of c.txt
        (600, "c"),
        (1025, "c"),  # within the text
    ],
)
def test_a_shard_cut_off_keeps_the_rows_before(tmp_path: Path, cut: int, lost: str) -> None:
    path = write_tar(tmp_path / "s.tar", clips("a", "b", "c"))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"RIFFc") + cut])
    rows = read(path)
    assert verdicts(rows) == [("a", None), ("b", None), (lost, "unreadable")]
    assert "the shard ends " in rows[2]["detail"]
    assert verdicts(read(path, limit=2)) == [("a", None), ("b", None)]


def test_a_shard_without_the_mark_of_its_end_may_lack_samples(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", clips("a", "b", "c"))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"RIFFc") + 3 * 512])
    rows = read(path)
    assert [row["reason"] for row in rows] == [None, None, None, "unreadable"]
    assert "without the mark of its end" in rows[3]["detail"]


def test_a_header_that_is_none_is_not_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", clips("a", "b"))
    data = bytearray(path.read_bytes())
    header = data.index(b"b.wav")
    data[header : header + 512] = b"\x55" * 512
    path.write_bytes(data)
    rows = read(path)
    assert verdicts(rows) == [("a", None), ("row-2", "unreadable")]
    assert rows[1]["source"] == "s.tar:end"
    assert str(header) in rows[1]["detail"]


def test_one_broken_shard_among_good_ones_is_counted(tmp_path: Path) -> None:
    write_tar(tmp_path / "1.tar", clips("a"))
    (tmp_path / "2.tar").write_bytes(b"not a tar at all" * 100)
    (tmp_path / "3.tar").touch()
    write_tar(tmp_path / "4.tar", clips("d"))
    rows = read(tmp_path)
    assert [row["reason"] for row in rows] == [None, "unreadable", "unreadable", None]
    assert rows[3]["id"] == "d"
    assert "no row could be read (the shard" in error(tmp_path / "2.tar")


# Several inputs, and which form they have


def test_several_inputs_are_one_table_in_their_order(tmp_path: Path) -> None:
    write_lines(tmp_path / "b.jsonl", GOOD, GOOD | {"id": "x"})
    write_lines(tmp_path / "a.jsonl", GOOD, GOOD | {"id": "x"})
    write_tar(tmp_path / "s.tar", clips("x", "y"))
    rows = read([f"{tmp_path}/b.jsonl", f"{tmp_path}/a.jsonl", f"{tmp_path}/*.tar"])
    assert [row["source"] for row in rows] == [
        "b.jsonl:1", "b.jsonl:2", "a.jsonl:1", "a.jsonl:2", "s.tar:x", "s.tar:y"
    ]  # fmt: skip
    assert verdicts(rows) == [
        ("row-1", None), ("b/x", None), ("row-3", None), ("a/x", "duplicate id"),
        ("s/x", None), ("s/y", None),
    ]  # fmt: skip


def test_more_files_than_are_read_at_a_time_keep_their_order(tmp_path: Path) -> None:
    for number in range(40):
        lines = [GOOD | {"id": f"{number:02}-{line}"} for line in range(3)]
        write_lines(tmp_path / f"{number:02}.jsonl", *lines)
    expected = [f"{number:02}-{line}" for number in range(40) for line in range(3)]
    assert [row["id"] for row in read(tmp_path)] == expected
    for limit in (1, 48, 50, 500):
        assert [row["id"] for row in read(f"{tmp_path}/*.jsonl", limit)] == expected[:limit]


@pytest.mark.slow
def test_more_rows_than_a_batch_keep_their_order_and_limit(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", *[GOOD | {"id": n} for n in range(20_000)])
    assert [row["id"] for row in read(path)] == [str(n) for n in range(20_000)]
    assert len(read(path, 16_390)) == 16_390


def test_a_glob_matches_folders_too(tmp_path: Path) -> None:
    for voice in ("ann", "bob"):
        (tmp_path / f"voice-{voice}" / "wavs").mkdir(parents=True)
        (tmp_path / f"voice-{voice}" / "wavs" / f"{voice}.wav").touch()
        (tmp_path / f"voice-{voice}" / "metadata.csv").write_text(f"{voice}|one\n", "utf-8")
    assert verdicts(read(f"{tmp_path}/voice-*")) == [("ann", None), ("bob", None)]


def test_a_glob_that_matches_nothing_is_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", GOOD)
    pattern = f"{tmp_path}/*.tar"
    assert error([f"{tmp_path}/a.jsonl", pattern]) == f"input {pattern}: no file or folder matches"


def test_an_input_named_twice_is_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD)
    assert error([str(path), str(tmp_path)]).startswith(f"input {path}: named twice")


def test_a_folder_of_two_forms_must_be_named(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", GOOD)
    write_tar(tmp_path / "b.tar", clips("b"))
    assert "holds .jsonl and .tar files; name the form" in error(tmp_path)
    assert verdicts(read(tmp_path, form="jsonl")) == [("line-1", None)]
    assert verdicts(read(tmp_path, form="webdataset")) == [("b", None)]
    assert "form parquet, but the folder has no .parquet" in error(tmp_path, form="parquet")


def test_metadata_decides_over_other_files(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "metadata.csv").write_text("x|one\n", "utf-8")
    assert verdicts(read(tmp_path)) == [("x", "missing")]


def test_a_folder_of_none_of_them_says_what_it_holds(tmp_path: Path) -> None:
    assert error(tmp_path).endswith("this folder holds nothing")
    for name in ("a.zip", "b.zip", "c.zip", "d.zip"):
        (tmp_path / name).touch()
    message = error(tmp_path)
    assert message.endswith("this folder holds a.zip, b.zip, c.zip and 1 more files")
    assert "WebDataset .tar" in message


def test_a_named_form_reads_a_file_of_any_suffix(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "manifest.ndjson", GOOD)
    assert "name its form" in error(path)
    assert verdicts(read(path, form="jsonl")) == [("row-1", None)]
    assert "is a folder, this is a file" in error(path, form="ljspeech")
    assert "form 'zip' is not known; the forms are ljspeech, jsonl" in error(path, form="zip")


def test_inputs_are_read_on_other_filesystems(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        tar = write_tar(tmp_path / "s 1.tar", clips("a", "b")).read_bytes()
        memory.pipe("/inputs/one/s 1.tar", tar)
        memory.pipe("/inputs/two/m.jsonl", json.dumps(GOOD).encode())
        rows = read(["memory://inputs/one/*.tar", "memory://inputs/two"])
    finally:
        memory.rm("/inputs", recursive=True)
    assert verdicts(rows) == [("a", None), ("b", None), ("row-3", None)]
    assert rows[0]["audio"] == "memory://inputs/one/s 1.tar"
    assert rows[2]["audio"] == "memory://inputs/two/a.wav"


def test_file_uris_may_have_escapes(tmp_path: Path) -> None:
    folder = tmp_path / "my voice é"
    write_lines(folder / "a b.jsonl", GOOD | {"audio": "c d.wav"})
    (row,) = read(f"{folder.as_uri()}/*.jsonl")
    assert row["source"] == "a b.jsonl:1"
    assert row["audio"] == f"{folder.as_uri()}/c%20d.wav"


def test_a_relative_input_gives_absolute_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(tmp_path / "m.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    for location in ("m.jsonl", "*.jsonl", "."):
        assert read(location)[0]["audio"] == f"{tmp_path}/a.wav"


# Readers of whole files


def test_plain_rows_are_whole_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", GOOD, {"audio": "b.wav"})
    rows = plain_rows(str(path))
    assert verdicts(rows) == [("line-1", None), ("line-2", "no text")]
    assert rows[0]["audio"] == f"{tmp_path}/a.wav"


def test_plain_rows_refuse_what_is_not(tmp_path: Path) -> None:
    codes = {"text": "one", "snac_codes": CODES}
    inputs = {
        "spans.jsonl:2": write_lines(tmp_path / "spans.jsonl", GOOD, GOOD | {"start": 1}),
        "codes.jsonl:1": write_lines(tmp_path / "codes.jsonl", codes),
        "a.parquet:1": write_parquet(tmp_path / "a.parquet", {"audio": embedded(1), "text": ["a"]}),
        "s.tar:a": write_tar(tmp_path / "s.tar", clips("a")),
    }
    for source, path in inputs.items():
        with pytest.raises(ValueError, match="not a recording in a file of its own") as caught:
            plain_rows(str(path))
        assert str(caught.value).startswith(f"{path}, {source}: ")


def test_plain_rows_are_read_from_a_parquet_of_paths(tmp_path: Path) -> None:
    shutil.copy(write_lines(tmp_path / "x.jsonl", GOOD), tmp_path / "y.jsonl")
    path = write_parquet(tmp_path / "a.parquet", {"audio": ["b.wav"], "text": ["one"]})
    assert plain_rows(str(path))[0]["audio"] == f"{tmp_path}/b.wav"


def test_every_form_can_be_named_by_the_flag() -> None:
    named, _ = get_args(EncodeConfig.model_fields["form"].annotation)
    assert set(get_args(named)) == set(FORMS)
