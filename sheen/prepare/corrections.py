"""What a person says of rows, in JSON lines: a text corrected, a row called good or wrong.

Owns the form of a correction, its checks and what it makes of a row. `{"id", "was", "text"}`
replaces a transcript; `"verdict": "wrong"` refuses the row, `"good"` keeps it whatever the limits
say. `was` is the transcript that the person saw: where a row has another now, that is an error.
Reads no audio.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sheen.data.schema import iter_lines
from sheen.storage import files, uris

CORRECTIONS = "corrections.jsonl"
"""In the output: all that were given so far."""
GOOD, WRONG, CORRECTED = "good", "wrong", "corrected"
EXPECTED = '{"id": ..., "was": ..., "text": ...} or {"id": ..., "was": ..., "verdict": "wrong"}'

Row = dict[str, Any]


@dataclass(frozen=True)
class Correction:
    """`text`: None leaves it. `verdict`: GOOD, WRONG or None. `source`: where it stands, for
    people."""

    id: str
    was: str
    text: str | None
    verdict: str | None
    source: str

    def line(self) -> Row:
        found = {"id": self.id, "was": self.was, "text": self.text, "verdict": self.verdict}
        return {name: value for name, value in found.items() if value is not None}


def read_corrections(location: str) -> list[Correction]:
    """Of a path or URI, in order. Raises ValueError naming the line."""
    found = []
    for number, line in iter_lines(location):
        if line.strip():
            found.append(_parse(line, f"{uris.name(location)}:{number}"))
    return found


def _parse(line: str, source: str) -> Correction:
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError("it is no object")
        if unknown := data.keys() - {"id", "was", "text", "verdict"}:
            raise ValueError(f"unknown key {min(unknown)!r}")
        for name in ("id", "was", "text", "verdict"):
            if not isinstance(data.get(name), str | None):
                raise TypeError(f"{name} must be a string")
        if data.get("id") is None or data.get("was") is None:
            raise ValueError("it has no id or no was")
        text, verdict = data.get("text"), data.get("verdict")
        if verdict not in (None, GOOD, WRONG):
            raise ValueError(f"verdict {verdict!r} is neither {GOOD!r} nor {WRONG!r}")
        if text is not None and not text.strip():
            raise ValueError(f"the text is empty; to refuse the row: verdict {WRONG!r}")
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{source}: expected {EXPECTED} ({error})") from error
    return Correction(data["id"], data["was"], text, verdict, source)


def merge_corrections(output: str, given: str | None) -> list[Correction]:
    """Those that the output has, and a file's after them; of several for a row the last counts.

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
    """Changes `text`, `reason`, `detail` and `checked` of rows in place.

    Raises ValueError before anything is changed: for a row that is not there, that has another
    transcript than was seen, or that has none and is to be kept.
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
                f"{row['text']!r}, and the correction is of {one.was!r}"
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
