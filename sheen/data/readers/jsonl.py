"""JSON lines: a manifest of recordings, or rows that bring their codes.

A malformed line becomes a row with a reason. Of codes only the shape is checked; whether they fit
a codec is the codec's business.
"""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sheen.data.schema import (
    CODES_KEY,
    KEYS,
    PART_KEYS,
    PLACE_KEY,
    FileRows,
    RowBuilder,
    is_none,
    iter_lines,
    part_of,
    pick,
    row_fields,
    text_of,
)
from sheen.storage import uris

EXPECTED = '{"audio": ..., "text": ...}'
EXPECTED_CODES = '{"snac_codes": [[...], ...], "text": ...}'
CONTAINERS = ("tar", "parquet")
LARGEST_CODE = 32767  # what the manifest's int16 holds
CODES_SHAPE = (
    "one list of codes for each codebook, the coarsest first: of SNAC at 24 kHz three, with 1, 2 "
    "and 4 codes a frame"
)


class CodesError(ValueError):
    """What is wrong with the codes of a row."""


def read(location: str, limit: int | None, codes: bool | None = None) -> FileRows:
    """Rows of a file; with `codes` None, its first line says whether it holds codes.

    `{"audio", "text", optional "id", "speaker", "instruction", "start", "end"}`, audio relative to
    the file and seconds within it; or `{"snac_codes", "text", optional "id", "speaker",
    "instruction"}`; see KEYS for what else they may be called. Also NeMo's `offset` and `duration`.
    `audio_channel`: one of the recording's, from 0. `audio_place`: where in a shard or Parquet file
    a recording is, see `place_of`.
    """
    rows = RowBuilder(limit)
    for number, line in iter_lines(location):
        if rows.full:
            break
        if not line.strip():
            continue
        if codes is None:
            codes = _holds_codes(line)
        rows.add(_row(location, number, line, codes, rows))
    return rows.finish()


def _holds_codes(line: str) -> bool:
    try:
        data = json.loads(line)
    except ValueError:
        return False
    return isinstance(data, dict) and CODES_KEY in data and "audio" not in data


def _row(location: str, number: int, line: str, codes: bool, rows: RowBuilder) -> dict[str, Any]:
    row: dict[str, Any] = {"text": "", "source": f"{uris.name(location)}:{number}"}
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError("not a JSON object")
        # Codes are those of the row, whatever part of a recording they were made of.
        rows.note_keys(data, (CODES_KEY,) if codes else (*PART_KEYS, PLACE_KEY))
        # A missing text counts as an empty one: a codec is trained without texts.
        row |= row_fields(data)
        if codes:
            if CODES_KEY not in data:
                raise ValueError(f"it has no {CODES_KEY}")
            row[CODES_KEY] = codes_of(data[CODES_KEY])
        else:
            audio = text_of(pick(data, "audio"), "audio")
            row |= part_of(data)
            row["container"], row["place"] = place_of(data)
            if audio:
                row["audio"] = uris.sibling(location, audio)
            elif data.keys() & set(KEYS["audio"]):
                row |= {"reason": "missing", "detail": "the row names no recording"}
            else:
                raise ValueError(f"it has no audio ({', '.join(KEYS['audio'])})")
    except CodesError as error:
        row |= {"reason": "bad codes", "detail": f"line {number}: {error}"}
    except (ValueError, TypeError, RecursionError) as error:
        expected = EXPECTED_CODES if codes else EXPECTED
        detail = f"line {number}: expected {expected} ({type(error).__name__}: {error})"
        return {"text": "", "source": row["source"], "reason": "malformed row", "detail": detail}
    return row


def place_of(data: dict[str, Any]) -> tuple[str | None, list[int] | None]:
    """Container and place of a row, as `sheen prepare` writes them for recordings inside a file:
    `{"tar": [offset, size]}` in bytes, or `{"parquet": [row group, row]}`. Raises ValueError."""
    value = data.get(PLACE_KEY)
    if is_none(value):
        return None, None
    # In Parquet, every row has both containers.
    held = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if len(held) == 1:
        ((container, place),) = held.items()
        numbers = place if isinstance(place, list) else []
        whole = all(type(number) is int and number >= 0 for number in numbers)
        if container in CONTAINERS and whole and len(numbers) == 2:
            return container, numbers
    raise ValueError(
        f'{PLACE_KEY} must be {{"tar": [offset, size]}} or {{"parquet": [row group, row]}}, not '
        f"{json.dumps(value)[:60]}"
    )


def codes_of(value: Any) -> list[NDArray[np.int16]]:
    """Codes by codebook, from the coarsest on; arrays, which are a small part of lists' size.

    They may be JSON in a string. Raises CodesError.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise CodesError(f"{CODES_KEY} is text that is not JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise CodesError(f"{CODES_KEY} must be {CODES_SHAPE}")
    if all(type(code) is int for code in value):
        raise CodesError(
            f"{CODES_KEY} is one flat list of {len(value)} codes, expected {CODES_SHAPE}"
        )
    for place, level in enumerate(value):
        if not isinstance(level, list):
            raise CodesError(f"{CODES_KEY}[{place}] must be a list of codes")
        for code in level:
            if type(code) is not int or not 0 <= code <= LARGEST_CODE:
                raise CodesError(
                    f"{CODES_KEY}[{place}] holds {json.dumps(code)[:40]}, expected whole numbers "
                    f"from 0 to {LARGEST_CODE}"
                )
    return [np.array(level, np.int16) for level in value]
