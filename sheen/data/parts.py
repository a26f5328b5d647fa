"""Rows that are parts of a recording: PART_KEYS as users write them, and the order of rows in which
parts are read for the least.

Owns what they mean, in every form of input: seconds from the recording's first sample on, either of
them null for its beginning or end; a channel counted from 0, null for the mean of all. Reads no
audio (`sheen.data.clips` does).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sheen.data.schema import is_none

SPAN_KEYS = ("start", "end")
NEMO_SPAN_KEYS = ("offset", "duration")
CHANNEL_KEY = "audio_channel"
PART_KEYS = (*SPAN_KEYS, *NEMO_SPAN_KEYS, CHANNEL_KEY)
"""Keys of a user's row that `part_of` reads."""
LONGEST = 1e9  # seconds, some thirty years: no recording is longer
_RECORDING = ("audio", "container", "place", "channel")


def part_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `start`, `end` and `channel` of a user's row, checked. Raises TypeError and
    ValueError."""
    start, end = _span_of(data)
    return {"start": start, "end": end, "channel": _channel_of(data)}


def _span_of(data: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Start and end; where a row has neither, NeMo's `offset`, and `duration` from there.

    A duration alone is that of the whole recording.
    """
    nothing = all(is_none(data.get(name)) for name in SPAN_KEYS)
    if nothing and not is_none(data.get("offset")):
        return _checked(data, *NEMO_SPAN_KEYS)
    return _checked(data, *SPAN_KEYS)


def _channel_of(data: Mapping[str, Any]) -> int | None:
    value = data.get(CHANNEL_KEY)
    if is_none(value):
        return None
    # Where a column of whole numbers has gaps, pandas writes 1.0 for 1.
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(256):
        raise TypeError(f"{CHANNEL_KEY} must be a whole number from 0 on, not {str(value)[:40]!r}")
    return int(value)


def _checked(data: Mapping[str, Any], first: str, second: str) -> tuple[float | None, float | None]:
    start, end = _seconds(data, first), _seconds(data, second)
    if second == "duration" and end is not None:
        end += start or 0.0
    if end is not None and end <= (start or 0.0):
        raise ValueError(f"end must be later than start: {start or 0:g} to {end:g} seconds")
    return start, end


def _seconds(data: Mapping[str, Any], name: str) -> float | None:
    value = data.get(name)
    if is_none(value):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {str(value)[:40]!r}")
    if not 0 <= value < LONGEST:  # false for NaN too
        raise ValueError(f"{name} must be from 0 to {LONGEST:.0e} s, not {str(value)[:40]}")
    return float(value)


def is_part(row: Mapping[str, Any]) -> bool:
    return row["start"] is not None or row["end"] is not None


def recording_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """A key that is equal for rows that are parts of one recording and channel."""
    return row["audio"], row["container"], tuple(row["place"] or ()), row.get("channel")


def in_recording_order(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of rows: parts of one recording together, where the first of them is, the earlier ones
    first."""
    first: dict[tuple[Any, ...], int] = {}
    order = [
        (first.setdefault(recording_of(row), place), row["start"] or 0.0, place)
        if is_part(row)
        else (place, 0.0, place)
        for place, row in enumerate(rows)
    ]
    return [place for *_, place in sorted(order)]


def sort_manifest(manifest: pa.Table) -> pa.Table:
    """The rows of MANIFEST_SCHEMA in that order."""
    if not pc.any(pc.or_(manifest["start"].is_valid(), manifest["end"].is_valid())).as_py():
        return manifest
    rows = manifest.select([*_RECORDING, *SPAN_KEYS]).to_pylist()
    return manifest.take(pa.array(in_recording_order(rows)))
