"""Corrections by a person: what they change, and which are errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from sheen.prepare.corrections import (
    CORRECTIONS,
    apply_corrections,
    merge_corrections,
    read_corrections,
)

Row = dict[str, Any]


def rows() -> list[Row]:
    return [
        {"id": name, "text": text, "reason": reason, "detail": None, "checked": None}
        for name, text, reason in (
            ("a", "one", None), ("b", "two", None), ("c", "tree", "repeats itself"),
            ("d", None, "too short"), ("e", "five", None),
        )
    ]  # fmt: skip


def write(path: Path, *lines: Row) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


def corrected(folder: Path, *lines: Row) -> list[tuple[str | None, str | None, str | None]]:
    found = rows()
    apply_corrections(found, read_corrections(write(folder / "given.jsonl", *lines)))
    return [(row["text"], row["reason"], row["checked"]) for row in found]


def test_texts_and_verdicts_change_their_rows_alone(tmp_path: Path) -> None:
    assert corrected(
        tmp_path,
        {"id": "a", "was": "one", "verdict": "good"},
        {"id": "b", "was": "two", "verdict": "wrong"},
        {"id": "c", "was": "tree", "text": "three"},
    ) == [
        ("one", None, "good"),
        ("two", "called wrong", "wrong"),
        ("three", None, "corrected"),
        (None, "too short", None),
        ("five", None, None),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "x", "was": "one", "text": "1"}, r"given\.jsonl:2: this output has no row 'x'"),
        ({"id": "a", "was": "won", "text": "1"}, r"row 'a' is 'one', but `was` is 'won'"),
        ({"id": "d", "was": "", "verdict": "good"}, r"row 'd' has no text; give one"),
        ({"id": "a", "text": "1"}, r"given\.jsonl:2: expected .*id or was is missing"),
        ({"id": "a", "was": "one", "verdict": "bad"}, r"verdict 'bad' is neither"),
        ({"id": "a", "was": "one", "txt": "1"}, r"unknown key 'txt'"),
        ({"id": "a", "was": "one", "text": " "}, r"the text is empty; to reject the row"),
        ({"id": "a", "was": "one", "text": 1}, r"given\.jsonl:2: .*text must be a string"),
        (
            {"id": "a", "was": "one", "text": "\ud83d"},
            r"given\.jsonl:2: .*half of a surrogate pair",
        ),
    ],
)
def test_a_correction_that_fits_no_row_is_an_error_and_changes_none(
    tmp_path: Path, line: Row, message: str
) -> None:
    path = write(tmp_path / "given.jsonl", {"id": "a", "was": "one", "verdict": "wrong"}, line)
    found = rows()
    with pytest.raises(ValueError, match=message):
        apply_corrections(found, read_corrections(path))
    assert found == rows()


def test_the_output_keeps_what_was_given_and_the_last_word_counts(tmp_path: Path) -> None:
    write(
        tmp_path / CORRECTIONS,
        {"id": "a", "was": "one", "text": "won"},
        {"id": "b", "was": "two", "verdict": "wrong"},
    )
    given = write(tmp_path / "given.jsonl", {"id": "a", "was": "one", "verdict": "good"})
    merged = merge_corrections(str(tmp_path), given)
    assert [correction.line() for correction in merged] == [
        {"id": "a", "was": "one", "verdict": "good"},
        {"id": "b", "was": "two", "verdict": "wrong"},
    ]
    assert len(merge_corrections(str(tmp_path), None)) == 2
    with pytest.raises(ValueError, match=r"--corrections .*nowhere: no such file"):
        merge_corrections(str(tmp_path), str(tmp_path / "nowhere"))
