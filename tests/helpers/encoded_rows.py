"""Rows of an encode job's output, written by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sheen import blocks
from sheen.data.dataset import CODES_TYPE
from sheen.encode.output import STATUSES
from sheen.encode.statistics import RunTimes, Statistics

RATE = 100
SIZE = 8
SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("id", pa.string()),
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("n_samples", pa.int64()),
        ("snac_codes", CODES_TYPE),
        ("source", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("seconds", pa.float64()),
    ]
)
TIMES = RunTimes(
    seconds=8.0,
    stages={"read": 0.5, "decode": 2.0, "resample": 1.0, "encode": 6.0, "write": 0.25},
    idle=1.6,
    workers=2,
    audio_seconds=20.0,
    steady=3.5,
    rows=4,
)
Row = dict[str, Any]


def encoded(key: int, seconds: float | None, text: str = "four", **more: Any) -> Row:
    row = {
        "key": key,
        "id": f"clip-{key}",
        "text": text,
        "n_samples": round((seconds or 0) * RATE),
        "snac_codes": [[0], [1, 2]],
        "source": f"list.jsonl:{key + 1}",
        "seconds": seconds,
    }
    return row | more


def rejected(key: int, reason: str, seconds: float | None = None, **more: Any) -> Row:
    row = {
        "key": key,
        "id": f"clip-{key}",
        "n_samples": 0,
        "source": f"list.jsonl:{key + 1}",
        "reason": reason,
        "detail": f"why {key}",
        "seconds": seconds,
    }
    return row | more


def write(folder: Path, status: str, *parts: list[Row]) -> str:
    """One row file for each part; returns the output folder."""
    target = folder / "rows" / f"status={status}"
    target.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(parts, start=len(list(target.iterdir()))):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), target / f"part-{number}.parquet")
    return str(folder)


def report_of(folder: str, times: RunTimes = TIMES) -> dict[str, Any]:
    statistics = Statistics(RATE, SIZE)
    for rows in blocks.read_merged(folder, STATUSES):
        statistics.add(rows)
    blocks.check_keys(folder, statistics.keys, np.unique(np.concatenate(statistics.keys)))
    return statistics.report(times)
