"""Corrections of rows by a reviewer, in JSON lines: a new text, or a verdict.

Owns the form of a correction, its checks and its effect on a row. `{"id", "was", "text"}` replaces
a transcript; `"verdict": "wrong"` rejects the row, `"good"` keeps it whatever the limits. `was` is
the text that the reviewer saw: the transcript, or what an earlier correction made of it; a text
that the row never had is an error. The output keeps all lines, since each may build on those before
it. Reads no audio.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sheen.data.corpus import FAULTY
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


def stored_corrections(output: str) -> list[Correction]:
    """Those that the output keeps, in the order in which they were given. Raises ValueError."""
    kept = uris.join(output, CORRECTIONS)
    return read_corrections(kept) if files.exists(kept) else []


def given_corrections(location: str | None) -> list[Correction]:
    """Those of `--corrections`; none for None. Raises ValueError naming the flag."""
    if location is None:
        return []
    try:
        return read_corrections(location)
    except FileNotFoundError as error:
        raise ValueError(f"--corrections {location}: no such file") from error
    except ValueError as error:
        raise ValueError(f"--corrections {error}") from error


def apply_corrections(
    rows: Iterable[Row], stored: Sequence[Correction], given: Sequence[Correction] = ()
) -> tuple[list[Correction], list[str]]:
    """Change `text`, `reason`, `detail` and `checked` of rows in place, by the stored corrections
    and then the given ones, in order.

    Returns the corrections to keep, and what is wrong with stored ones that no longer fit, such as
    of a text that the input has changed: those change nothing, and fit again when it is back.
    Raises ValueError before any change, for a given one whose row does not exist or never had the
    text `was`, or that is to be kept without a text. A given one that is stored already has no
    effect: a file of corrections may be given again.
    """
    by_id = {row["id"]: row for row in rows if row["reason"] not in FAULTY}
    corrected: dict[str, Row] = {}
    texts: dict[str, list[str]] = {}  # that each corrected row has had, the first its own

    def apply(one: Correction) -> None:
        row = corrected.get(one.id, by_id.get(one.id))
        if row is None:
            raise ValueError(f"{one.source}: this output has no row {one.id!r}")
        had = texts.get(one.id, [row["text"] or ""])
        was = next((text for text in had if _as_shown(text) == _as_shown(one.was)), None)
        if was is None:
            raise ValueError(
                f"{one.source}: the text of row {one.id!r} is {row['text']!r}, but `was` is "
                f"{one.was!r}"
            )
        text = was if one.text is None else one.text
        change: Row = {}
        if one.verdict == WRONG:
            change = {"reason": "called wrong", "detail": f"by a person: {row['text']!r}"}
            change["checked"] = WRONG
        elif one.text is not None or one.verdict == GOOD:
            if not text.strip():
                raise ValueError(f"{one.source}: row {one.id!r} has no text; give one to keep it")
            checked = GOOD if text == had[0] else CORRECTED
            change = {"reason": None, "detail": None, "text": text, "checked": checked}
        corrected[one.id] = row | change
        texts[one.id] = [*had, text]

    stale = []
    for one in stored:
        try:
            apply(one)
        except ValueError as error:
            stale.append(str(error))
    known = {_content(one) for one in stored}
    new = [one for one in given if _content(one) not in known]
    for one in new:
        try:
            apply(one)
        except ValueError as error:
            raise ValueError(f"--corrections {error}") from error
    for name, row in corrected.items():
        by_id[name].update(row)
    return [*stored, *new], stale


def _as_shown(text: str) -> str:
    """In a browser, a text has no other ends of lines."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _content(one: Correction) -> tuple[str, str, str | None, str | None]:
    return one.id, one.was, one.text, one.verdict
