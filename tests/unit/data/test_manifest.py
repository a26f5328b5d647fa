"""The manifest: what an LJSpeech folder or a JSONL file gives, and every fault either may have."""

import json
from pathlib import Path
from typing import Any

import pytest

from sheen.data.corpus import MANIFEST_SCHEMA, read_manifest

GOOD_LINE = '{"audio": "a.wav", "text": "one"}'


def read(location: Path | str, limit: int | None = None) -> list[dict[str, Any]]:
    table = read_manifest(str(location), limit)
    assert table.schema == MANIFEST_SCHEMA
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def error(location: Path | str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (callers check the message)
        read_manifest(str(location))
    return str(caught.value)


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str | None]]:
    return [(row["id"], row["reason"]) for row in rows]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings a, b, c and d, of several kinds; the manifest never opens them."""
    (tmp_path / "wavs").mkdir()
    for name in ("a.wav", "b.flac", "c.mp3", "d.WAV", "notes.txt"):
        (tmp_path / "wavs" / name).touch()
    return tmp_path


def write(folder: Path, metadata: str | bytes) -> Path:
    data = metadata if isinstance(metadata, bytes) else metadata.encode()
    (folder / "metadata.csv").write_bytes(data)
    return folder


@pytest.fixture
def jsonl(tmp_path: Path) -> Path:
    return tmp_path / "manifest.jsonl"


# An LJSpeech folder: the whole file


def test_a_folder_without_metadata_names_the_file(folder: Path) -> None:
    assert error(folder).startswith(f"{folder}/metadata.csv is missing")


@pytest.mark.parametrize("content", ["", "\n\n", "  \r\n"])
def test_empty_metadata_is_an_error(folder: Path, content: str) -> None:
    assert error(write(folder, content)).startswith(f"{folder}/metadata.csv is empty")


@pytest.mark.parametrize(
    ("delimiter", "name"), [(",", "a comma"), ("\t", "a tab"), (";", "a semicolon")]
)
def test_another_delimiter_is_named(folder: Path, delimiter: str, name: str) -> None:
    message = error(write(folder, f"\na{delimiter}one\nb{delimiter}two\n"))
    assert "wrong delimiter: line 2 is" in message
    assert message.endswith(f"separated by '|', this file seems to use {name}")


def test_text_that_is_not_utf8_names_the_line(folder: Path) -> None:
    message = error(write(folder, "a|one\nb|two\nc|café\n".encode("latin-1")))
    assert f"{folder}/metadata.csv: line 3 is not UTF-8" in message


def test_no_readable_row_is_an_error(folder: Path) -> None:
    assert "no row could be read (line 1 has 5 fields" in error(write(folder, "a|1|2|3|4\nb||||\n"))


def test_a_missing_recordings_folder_makes_every_row_missing(tmp_path: Path) -> None:
    assert verdicts(read(write(tmp_path, "a|one\n"))) == [("a", "missing")]


# An LJSpeech folder: its rows


def test_metadata_may_have_two_three_or_four_columns(folder: Path) -> None:
    rows = read(write(folder, "a|Dr. A\nb|Dr. B|Doctor B\nc|Dr. C|Doctor C|carol\nd|Dr. D||dave\n"))
    assert [(row["text"], row["speaker"]) for row in rows] == [
        ("Dr. A", None),
        ("Doctor B", None),
        ("Doctor C", "carol"),
        ("Dr. D", "dave"),
    ]
    assert [row["reason"] for row in rows] == [None] * 4
    assert [row["audio"] for row in rows] == [
        f"{folder}/wavs/{name}" for name in ("a.wav", "b.flac", "c.mp3", "d.WAV")
    ]
    assert [row["source"] for row in rows] == [f"metadata.csv:{line}" for line in (1, 2, 3, 4)]


def test_an_empty_fourth_column_is_no_speaker(folder: Path) -> None:
    assert read(write(folder, "a|one|one|\nb|two|two|  \n"))[0]["speaker"] is None


def test_byte_order_mark_windows_lines_and_spaces_are_not_content(folder: Path) -> None:
    rows = read(write(folder, b"\xef\xbb\xbfa | one\r\n\r\nb|two \r\n"))
    assert [(row["id"], row["text"], row["reason"]) for row in rows] == [
        ("a", "one", None),
        ("b", "two", None),
    ]
    assert rows[1]["source"] == "metadata.csv:3"


def test_an_id_may_carry_its_files_suffix(folder: Path) -> None:
    rows = read(write(folder, "a.wav|one\nb.wav|two\nd.wav|three\n"))
    assert verdicts(rows) == [("a.wav", None), ("b.wav", None), ("d.wav", None)]
    assert [Path(row["audio"]).name for row in rows] == ["a.wav", "b.flac", "d.WAV"]


def test_an_id_with_a_dot_is_whole(folder: Path) -> None:
    (folder / "wavs" / "a.2.wav").touch()
    rows = read(write(folder, "a.2|one\n"))
    assert rows[0]["audio"] == f"{folder}/wavs/a.2.wav"


@pytest.mark.parametrize("name", ["a.3", "other/a", "notes"])
def test_an_id_never_takes_another_ids_recording(folder: Path, name: str) -> None:
    assert verdicts(read(write(folder, f"{name}|one\n"))) == [(name, "missing")]


@pytest.mark.parametrize("space", ["\u2028", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_only_line_ends_end_a_line(folder: Path, space: str) -> None:
    rows = read(write(folder, f"a|one{space}two\nb|three\n"))
    assert verdicts(rows) == [("a", None), ("b", None)]
    assert rows[0]["text"] == f"one{space}two"
    assert rows[1]["source"] == "metadata.csv:2"


def test_faulty_rows_are_counted_and_good_rows_stay(folder: Path) -> None:
    lines = ["a|one", "a|again", "p", "q|1|2|3|4", "|nameless", "x|no recording", "b|", "c| |  |"]
    rows = read(write(folder, "\n".join([*lines, "d|last"])))
    assert verdicts(rows) == [
        ("a", None),
        ("a", "duplicate id"),
        ("p", "malformed row"),
        ("q", "malformed row"),
        ("", "malformed row"),
        ("x", "missing"),
        ("b", "no text"),
        ("c", "no text"),
        ("d", None),
    ]
    assert rows[0]["text"] == "one"
    assert "'a'" in rows[1]["detail"]
    assert rows[2]["detail"].startswith("line 3 has 1 fields")
    assert rows[3]["detail"].startswith("line 4 has 5 fields")
    assert rows[5]["detail"].startswith(f"no recording 'x' in {folder}/wavs, ")


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_the_limit_keeps_the_first_rows_faulty_ones_included(folder: Path, limit: int) -> None:
    write(folder, "a|one\nx|missing\nb|two\n")
    assert verdicts(read(folder, limit)) == [("a", None), ("x", "missing"), ("b", None)][:limit]


# A JSONL manifest


def test_audio_is_relative_to_the_manifest_or_absolute(jsonl: Path) -> None:
    audio = ["clips/a.wav", "/data/b.wav", "s3://bucket/c.wav"]
    jsonl.write_text("".join(json.dumps({"audio": a, "text": "one"}) + "\n" for a in audio))
    rows = read(jsonl)
    assert [row["audio"] for row in rows] == [f"{jsonl.parent}/clips/a.wav", *audio[1:]]
    assert verdicts(rows) == [("line-1", None), ("line-2", None), ("line-3", None)]
    assert rows[2]["source"] == "manifest.jsonl:3"


def test_id_and_speaker_are_optional(jsonl: Path) -> None:
    lines = [
        {"audio": "a.wav", "text": "one", "id": "first", "speaker": "ann"},
        {"audio": "b.wav", "text": "two", "id": 7, "speaker": 3},
        {"audio": "c.wav", "text": "three", "id": None, "speaker": None},
        {"audio": "d.wav", "text": "four", "id": None, "speaker": ""},
    ]
    jsonl.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    rows = read(jsonl)
    assert [(row["id"], row["speaker"], row["reason"]) for row in rows] == [
        ("first", "ann", None),
        ("7", "3", None),
        ("line-3", None, None),
        ("line-4", None, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        '{"audio": "a.wav", "text": ',
        '{"text": "one"}',
        '{"audio": 5, "text": "one"}',
        '{"audio": "a.wav", "text": ["one"]}',
        '["a.wav", "one"]',
        '"a.wav"',
        "7",
        "null",
        "a.wav|one",
    ],
)
def test_a_broken_line_is_a_counted_reject(jsonl: Path, line: str) -> None:
    jsonl.write_text(f"{GOOD_LINE}\n{line}\n\n{GOOD_LINE}\n", "utf-8")
    rows = read(jsonl)
    assert verdicts(rows) == [("line-1", None), ("line-2", "malformed row"), ("line-4", None)]
    assert rows[1]["detail"].startswith("line 2: expected ")


def test_a_line_without_text_is_a_row_without_text(jsonl: Path) -> None:
    jsonl.write_text(f'{GOOD_LINE}\n{{"audio": "a.wav"}}\n', "utf-8")
    assert verdicts(read(jsonl)) == [("line-1", None), ("line-2", "no text")]


def test_no_readable_line_is_an_error(jsonl: Path) -> None:
    jsonl.write_text("a.wav|one\nb.wav|two\n", "utf-8")
    assert f"{jsonl}: no row could be read (line 1: " in error(jsonl)


def test_faulty_jsonl_rows_are_counted(jsonl: Path) -> None:
    lines = [
        {"audio": "a.wav", "text": "one", "id": "a"},
        {"audio": "b.wav", "text": "two", "id": "a"},
        {"audio": "c.wav", "text": " \t", "id": "c"},
    ]
    jsonl.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    assert verdicts(read(jsonl)) == [("a", None), ("a", "duplicate id"), ("c", "no text")]


@pytest.mark.parametrize("space", ["\u2028", "\u0085"])
def test_only_line_ends_end_a_json_line(jsonl: Path, space: str) -> None:
    line = json.dumps({"audio": "a.wav", "text": f"one{space}two"}, ensure_ascii=False)
    jsonl.write_text(f"{GOOD_LINE}\n{line}\n", "utf-8")
    rows = read(jsonl)
    assert verdicts(rows) == [("line-1", None), ("line-2", None)]
    assert rows[1]["text"] == f"one{space}two"


def test_a_byte_order_mark_is_not_json(jsonl: Path) -> None:
    jsonl.write_text(GOOD_LINE, "utf-8-sig")
    assert verdicts(read(jsonl)) == [("line-1", None)]


def test_jsonl_that_is_not_utf8_names_the_line(jsonl: Path) -> None:
    jsonl.write_bytes(f"{GOOD_LINE}\n".encode() + b'{"audio": "a.wav", "text": "caf\xe9"}\n')
    assert f"{jsonl}: line 2 is not UTF-8" in error(jsonl)


def test_the_limit_keeps_the_first_lines_of_a_jsonl_manifest(jsonl: Path) -> None:
    jsonl.write_text(f"{GOOD_LINE}\n" * 4, "utf-8")
    assert len(read(jsonl, 3)) == 3


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_manifest_without_rows_is_an_error(jsonl: Path, content: str) -> None:
    jsonl.write_text(content, "utf-8")
    assert error(jsonl) == f"input {jsonl}: it holds no rows"


# Neither


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    for missing in (f"{tmp_path}/none", f"{tmp_path}/none.jsonl", f"file://{tmp_path}/none"):
        assert error(missing) == f"input {missing}: no such file or folder"


@pytest.mark.parametrize("name", ["metadata.csv", "recordings.zip", "a.wav"])
def test_an_input_of_another_kind_says_what_is_expected(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a|one\n", "utf-8")
    message = error(tmp_path / name)
    assert message.startswith(f"input {tmp_path}/{name}: expected an LJSpeech folder")
    assert ".jsonl" in message


def test_uris_read_like_paths(folder: Path) -> None:
    rows = read("file://" + str(write(folder, "a|one\n")))
    assert verdicts(rows) == [("a", None)]
    assert rows[0]["audio"] == f"file://{folder}/wavs/a.wav"
