"""Corrections by a person: what they change, and which are errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from sheen.prepare.corrections import (
    CORRECTIONS,
    apply_corrections,
    given_corrections,
    read_corrections,
    stored_corrections,
)
from sheen.prepare.output import write_lines

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
    apply_corrections(found, [], read_corrections(write(folder / "given.jsonl", *lines)))
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
        (
            {"id": "x", "was": "one", "text": "1"},
            r"--corrections given\.jsonl:2: this output has",
        ),
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
        apply_corrections(found, [], given_corrections(path))
    assert found == rows()


def test_a_correction_is_of_the_row_that_has_the_id(tmp_path: Path) -> None:
    """And of none that was rejected because another has it, wherever that stands."""
    own = rows()[0]
    for reason in ("duplicate id", "malformed row"):
        other = own | {"reason": reason, "detail": "of the input"}
        for found in ([dict(own), dict(other)], [dict(other), dict(own)]):
            given = write(tmp_path / "given.jsonl", {"id": "a", "was": "one", "verdict": "wrong"})
            apply_corrections(found, [], read_corrections(given))
            assert sorted(row["reason"] for row in found) == ["called wrong", reason]


@pytest.mark.parametrize("text", ["one\r\ntwo", "one\rtwo", "one\ntwo", "\r\none"])
def test_a_page_changes_the_ends_of_lines(text: str, tmp_path: Path) -> None:
    """As a browser does, whose page cannot show others."""
    was = text.replace("\r\n", "\n").replace("\r", "\n")
    for change, expected in (
        ({"verdict": "good"}, (text, "good")),
        ({"text": "won"}, ("won", "corrected")),
    ):
        found = [rows()[0] | {"text": text}]
        given = read_corrections(write(tmp_path / "given.jsonl", {"id": "a", "was": was} | change))
        apply_corrections(found, [], given)
        assert (found[0]["text"], found[0]["checked"]) == expected


def reviewed(output: Path, *lines: Row, texts: Row | None = None) -> tuple[list[Row], list[str]]:
    """The rows after another run with these corrections, and what does not apply. `texts`: other
    transcripts than before, by id."""
    given = given_corrections(write(output / "given.jsonl", *lines) if lines else None)
    found = rows()
    for row in found:
        row["text"] = (texts or {}).get(row["id"], row["text"])
    kept, stale = apply_corrections(found, stored_corrections(str(output)), given)
    write_lines(str(output / CORRECTIONS), [one.line() for one in kept])
    return found, stale


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"was": "won", "text": "ones"}, ("ones", "corrected")),
        ({"was": "won", "verdict": "good"}, ("won", "corrected")),
        ({"was": "won", "verdict": "good", "text": "ones"}, ("ones", "corrected")),
        ({"was": "won", "verdict": "wrong"}, ("won", "wrong")),
        ({"was": "won", "text": "one"}, ("one", "good")),
        # From a page that was opened before the first correction was applied.
        ({"was": "one", "text": "ones"}, ("ones", "corrected")),
        ({"was": "one", "verdict": "good"}, ("one", "good")),
    ],
)
def test_a_second_review_sees_the_first_ones_texts(
    tmp_path: Path, second: Row, expected: tuple[str, str]
) -> None:
    """The page shows the text as corrected, and that is what its lines say it was."""
    first, other = {"id": "a", "was": "one", "text": "won"}, {"id": "b", "was": "two"}
    assert reviewed(tmp_path, first, other | {"verdict": "wrong"})[0][0]["text"] == "won"
    assert reviewed(tmp_path)[0][0]["text"] == "won"
    after, stale = reviewed(tmp_path, {"id": "a"} | second)
    assert ((after[0]["text"], after[0]["checked"]), stale) == (expected, [])
    assert after[1]["checked"] == "wrong"
    # And a third run, of whatever file that was given before.
    assert reviewed(tmp_path) == (after, [])
    assert reviewed(tmp_path, first) == (after, [])


def test_a_row_that_was_called_wrong_can_be_taken_back(tmp_path: Path) -> None:
    reviewed(tmp_path, {"id": "a", "was": "one", "verdict": "wrong"})
    (row, *_), _ = reviewed(tmp_path, {"id": "a", "was": "one", "verdict": "good"})
    assert (row["text"], row["reason"], row["checked"]) == ("one", None, "good")


def test_a_stored_correction_of_another_text_is_told_and_waits(tmp_path: Path) -> None:
    """As after `--no-texts`, which nobody is asked to correct."""
    first = {"id": "a", "was": "one", "text": "won"}
    before, _ = reviewed(tmp_path, first, {"id": "b", "was": "two", "text": "too"})
    found, (stale,) = reviewed(tmp_path, texts={"a": "want"})
    assert (found[0]["text"], found[0]["checked"]) == ("want", None)
    assert found[1] == before[1]
    assert stale == "corrections.jsonl:1: the text of row 'a' is 'want', but `was` is 'one'"
    assert reviewed(tmp_path) == (before, [])


def test_a_file_of_corrections_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert stored_corrections(str(tmp_path)) == []
    with pytest.raises(ValueError, match=r"--corrections .*nowhere: no such file"):
        given_corrections(str(tmp_path / "nowhere"))
