"""Lists of prompts: each format in its own order, and faults that name the file and the row."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sheen.data.prompts import Prompt, read_prompts


def read(path: Path) -> list[Prompt]:
    """The prompts of a path, which are those of its URI."""
    prompts = read_prompts(str(path))
    assert read_prompts(path.as_uri()) == prompts
    return prompts


def write_parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


# The formats


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines count and hold nothing; a separator of Unicode stands in its text."""
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffone\r\n\r\n  \ntwo\u2028three\n".encode())
    assert read(path) == [Prompt("line-1", "one"), Prompt("line-4", "two\u2028three")]


@pytest.mark.parametrize("name", ["list.jsonl", "list.json"])
def test_prompts_are_read_from_lines_of_json(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        '{"id": "a", "text": "one two", "speaker": "heart"}\n'
        "\n"
        '{"text": "three", "speaker": null, "id": null}\n'
        '{"id": 0, "text": " Åsa ", "speaker": "", "more": [1]}\n'
        '{"text": "five", "speaker": 3}',
        "utf-8",
    )
    assert read(path) == [
        Prompt("a", "one two", "heart"),
        Prompt("line-3", "three"),
        Prompt("0", " Åsa "),
        Prompt("line-5", "five", "3"),
    ]


def test_prompts_are_read_from_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    write_parquet(
        path,
        speaker=["heart", None, ""],
        more=[1, 2, 3],
        text=pa.array(["one two", "three", "four"], pa.large_string()),
        id=["a", None, "a"],
    )
    assert read(path) == [
        Prompt("a", "one two", "heart"),
        Prompt("row-2", "three"),
        Prompt("a", "four"),
    ]


def test_texts_are_all_that_a_parquet_file_needs(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    write_parquet(path, text=pa.array(["one", "two", "one"]).dictionary_encode())
    assert read(path) == [Prompt("row-1", "one"), Prompt("row-2", "two"), Prompt("row-3", "one")]


def test_ids_of_prompts_may_be_numbers(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    write_parquet(path, text=["one", "two"], id=[0, 12])
    assert [prompt.id for prompt in read(path)] == ["0", "12"]


def test_a_folder_of_parquet_files_is_read_by_name(tmp_path: Path) -> None:
    """A prompt's place decides its draws, so it must not depend on how a disk lists files."""
    folder = tmp_path / "list"
    folder.mkdir()
    for number in (2, 0, 1):
        write_parquet(folder / f"part-{number}.parquet", text=[f"{number} a", f"{number} b"])
    (folder / "_SUCCESS").touch()
    texts = ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b"]
    assert read(folder) == [Prompt(f"row-{row}", text) for row, text in enumerate(texts, start=1)]


def test_an_ljspeech_folder_needs_no_recordings(tmp_path: Path) -> None:
    """An id that stands twice is one twice, and a text that is empty is left to who speaks it."""
    (tmp_path / "metadata.csv").write_text(
        "a|1|one|heart\n\nb|two\na|three||\nc| ||bf_alice\n", encoding="utf-8"
    )
    assert read(tmp_path) == [
        Prompt("a", "one", "heart"),
        Prompt("b", "two"),
        Prompt("a", "three"),
        Prompt("c", "", "bf_alice"),
    ]


# The faults


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "no such file or folder"),
        ("list.csv", b"one\n", "expected a .txt, .jsonl or .parquet file"),
        ("list.txt", b"", "it holds no prompts"),
        ("list.jsonl", b"\n \n", "it holds no prompts"),
        ("list.txt", b"one\ncaf\xe9\n", "line 2 is not UTF-8"),
        ("list.jsonl", b'{"text": "one"}\n\none\n', "line 3: not JSON"),
        ("list.jsonl", b'["one"]\n', 'line 1: expected an object with a "text", got ["one"]'),
        ("list.jsonl", b'{"id": "a"}\n', 'line 1: expected an object with a "text"'),
        ("list.jsonl", b'{"text": 3}\n', 'line 1: expected an object with a "text"'),
        ("list.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_list_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    refuse(path, message)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "words": ["one"]}, "no column for the text (text, transcription, sentence"),
        ({"text": ["one", None]}, "row 2: its text is None"),
        ({"text": [3]}, "column 'text' is int64, expected string"),
        ({"text": pa.array([], pa.string())}, "it holds no prompts"),
    ],
)
def test_a_parquet_file_without_texts_is_named(
    tmp_path: Path, columns: dict[str, Any], message: str
) -> None:
    path = tmp_path / "list.parquet"
    write_parquet(path, **columns)
    refuse(path, message)


def test_a_folder_that_is_no_list_is_named(tmp_path: Path) -> None:
    refuse(tmp_path, "its columns are none")
    (tmp_path / "notes.txt").write_text("one\n", "utf-8")
    refuse(tmp_path, "cannot be read as Parquet")


def test_a_malformed_row_of_an_ljspeech_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("a|one\nb\n", "utf-8")
    refuse(tmp_path, "metadata.csv:2: line 2 has 1 fields")


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_prompts(str(path))
    assert str(caught.value).startswith(str(path))


def test_a_speaker_is_read_as_a_checkpoint_lists_it(tmp_path: Path) -> None:
    """macOS decomposes the letters of file names, from which manifests are made."""
    path = tmp_path / "list.jsonl"
    lines = ['{"text": "one", "speaker": "Jose\u0301  Maria "}', '{"text": "two", "speaker": " "}']
    path.write_text("\n".join(lines), "utf-8")
    assert [prompt.speaker for prompt in read(path)] == ["Jos\u00e9 Maria", None]
