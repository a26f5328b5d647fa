"""Lines of JSON: a manifest of recordings, or rows that bring their codes.

A fault of one line becomes a row with a reason. Of codes only the shape is looked at: which layout
they must have is known to a codec, not here.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sheen.core import files
from sheen.core.inputs.rows import RowBuilder, iter_lines, name_of, text_of

EXPECTED = '{"audio": ..., "text": ...}'
EXPECTED_CODES = '{"snac_codes": [[...], ...], "text": ...}'
LARGEST_CODE = 32767  # what the manifest's int16 holds
LONGEST = 1e9  # seconds, some thirty years: no recording is longer


class CodesError(ValueError):
    """What is wrong with the codes of a row."""


def read(location: str, limit: int | None, codes: bool | None = None) -> list[pa.RecordBatch]:
    """Rows of a file; with `codes` None, its first line says whether it holds codes.

    `{"audio", "text", optional "id", "speaker", "start", "end"}`, audio relative to the file and
    seconds within it; or `{"snac_codes", "text", optional "id", "speaker"}`.
    """
    rows = RowBuilder(limit)
    for number, line in iter_lines(location):
        if rows.full:
            break
        if not line.strip():
            continue
        if codes is None:
            codes = _holds_codes(line)
        rows.add(_row(location, number, line, codes))
    return rows.finish()


def _holds_codes(line: str) -> bool:
    try:
        data = json.loads(line)
    except ValueError:
        return False
    return isinstance(data, dict) and "snac_codes" in data and "audio" not in data


def _row(location: str, number: int, line: str, codes: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"text": "", "source": f"{files.name(location)}:{number}"}
    try:
        data = json.loads(line)
        given = data["snac_codes" if codes else "audio"]
        # A text that is missing is a text that is empty: codecs are trained without any.
        row |= {
            "text": text_of(data.get("text", ""), "text"),
            "id": name_of(data.get("id"), "id"),
            "speaker": name_of(data.get("speaker"), "speaker"),
        }
        if codes:
            row["snac_codes"] = _codes(given)
        else:
            row["audio"] = files.beside(location, text_of(given, "audio"))
            row["start"], row["end"] = _span(data.get("start"), data.get("end"))
    except CodesError as error:
        row |= {"reason": "bad codes", "detail": f"line {number}: {error}"}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected = EXPECTED_CODES if codes else EXPECTED
        detail = f"line {number}: expected {expected} ({type(error).__name__}: {error})"
        return {"text": "", "source": row["source"], "reason": "malformed row", "detail": detail}
    return row


def _span(start: Any, end: Any) -> tuple[float | None, float | None]:
    """Seconds, checked; None is the recording's beginning or end."""
    for name, value in (("start", start), ("end", end)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        if not 0 <= value < LONGEST:  # false for NaN too
            raise ValueError(f"{name} must be from 0 to {LONGEST:.0e} s, not {str(value)[:40]}")
    if end is not None and end <= (start or 0):
        raise ValueError(f"end must be later than start: {start or 0} to {end} seconds")
    return (
        None if start is None else float(start),
        None if end is None else float(end),
    )


def _codes(value: Any) -> list[NDArray[np.int16]]:
    """Codes by codebook, from the coarsest on; arrays, which are a small part of lists' size."""
    if not isinstance(value, list) or not value:
        raise CodesError("snac_codes must be a list of one list of codes for each codebook")
    for place, level in enumerate(value):
        if not isinstance(level, list):
            raise CodesError(f"snac_codes[{place}] must be a list of codes")
        for code in level:
            if type(code) is not int or not 0 <= code <= LARGEST_CODE:
                raise CodesError(
                    f"snac_codes[{place}] holds {json.dumps(code)[:40]}, expected whole numbers "
                    f"from 0 to {LARGEST_CODE}"
                )
    return [np.array(level, np.int16) for level in value]
