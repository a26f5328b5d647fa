"""Corrections of rows by a reviewer, in JSON lines: a new text, or a verdict.

Owns the form of a correction, its checks and its effect on a row. `{"id", "was", "text"}` replaces
a transcript; `"verdict": "wrong"` rejects the row, `"good"` keeps it whatever the limits. `was` is
the transcript that the reviewer saw: if the row now has another one, that is an error. Reads no
audio.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sheen.data.schema import iter_lines, text_of
from sheen.storage import files, uris

CORRECTIONS = "corrections.jsonl"
"""File in the output with all corrections so far."""
GOOD, WRONG, CORRECTED = "good", "wrong", "corrected"
EXPECTED = '{"id": ..., "was": ..., "text": ...} or {"id": ..., "was": ..., "verdict": "wrong"}'

Row = dict[str, Any]


@dataclass(frozen=True)
class Correction:
    """`text`: None for no change. `verdict`: GOOD, WRONG or None. `source`: its place, for
    messages."""

    id: str
    was: str
    text: str | None
    verdict: str | None
    source: str

    def line(self) -> Row:
        found = {"id": self.id, "was": self.was, "text": self.text, "verdict": self.verdict}
        return {name: value for name, value in found.items() if value is not None}


def read_corrections(location: str) -> list[Correction]:
    """The corrections in a file, path or URI, in order. Raises ValueError naming the line."""
    found = []
    for number, line in iter_lines(location):
        if line.strip():
            found.append(_parse(line, f"{uris.name(location)}:{number}"))
    return found


def _parse(line: str, source: str) -> Correction:
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError("not an object")
        if unknown := data.keys() - {"id", "was", "text", "verdict"}:
            raise ValueError(f"unknown key {min(unknown)!r}")
        for name in ("id", "was", "text", "verdict"):
            text_of(data.get(name), name)
        if data.get("id") is None or data.get("was") is None:
            raise ValueError("id or was is missing")
        text, verdict = data.get("text"), data.get("verdict")
        if verdict not in (None, GOOD, WRONG):
            raise ValueError(f"verdict {verdict!r} is neither {GOOD!r} nor {WRONG!r}")
        if text is not None and not text.strip():
            raise ValueError(f"the text is empty; to reject the row, give verdict {WRONG!r}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{source}: expected {EXPECTED} ({error})") from error
    return Correction(data["id"], data["was"], text, verdict, source)


def merge_corrections(output: str, given: str | None) -> list[Correction]:
    """The corrections in the output, then those in a file; the last one for each row counts.

    Raises ValueError.
    """
    kept = uris.join(output, CORRECTIONS)
    found = read_corrections(kept) if files.exists(kept) else []
    if given is not None:
        try:
            found += read_corrections(given)
        except FileNotFoundError as error:
            raise ValueError(f"--corrections {given}: no such file") from error
        except ValueError as error:
            raise ValueError(f"--corrections {error}") from error
    return list({correction.id: correction for correction in found}.values())


def apply_corrections(rows: Iterable[Row], corrections: Iterable[Correction]) -> None:
    """Change `text`, `reason`, `detail` and `checked` of rows in place.

    Raises ValueError before any change, for a row that does not exist, that has another transcript
    than `was`, or that is to be kept without a text.
    """
    by_id: Mapping[str, Row] = {row["id"]: row for row in rows}
    corrections = list(corrections)
    for one in corrections:
        row = by_id.get(one.id)
        if row is None:
            raise ValueError(f"--corrections {one.source}: this output has no row {one.id!r}")
        if one.was != (row["text"] or ""):
            raise ValueError(
                f"--corrections {one.source}: the transcript of row {one.id!r} is "
                f"{row['text']!r}, but `was` is {one.was!r}"
            )
        if one.verdict == GOOD and one.text is None and not one.was.strip():
            raise ValueError(
                f"--corrections {one.source}: row {one.id!r} has no text; give one to keep it"
            )
    for one in corrections:
        row = by_id[one.id]
        if one.verdict == WRONG:
            row |= {"reason": "called wrong", "detail": f"by a person: {row['text']!r}"}
            row["checked"] = WRONG
        elif one.text is not None or one.verdict == GOOD:
            changed = one.text is not None and one.text != one.was
            row |= {"reason": None, "detail": None, "text": one.text or row["text"]}
            row["checked"] = CORRECTED if changed else GOOD
