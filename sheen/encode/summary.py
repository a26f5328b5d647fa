"""What an encode job did, in numbers: `report.json`, computed from the rows that were written.

Owns the report's content and the choice of rows to listen to. Reads no audio, measures no time
(`RunTimes` is the job's), reads rows through `sheen.encode.statistics` and shows nothing: that is
`sheen.encode.report`'s.
"""

from array import array
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from numpy.typing import NDArray

from sheen.encode.output import ENCODED, REJECTED
from sheen.encode.statistics import Rejects, Seen, Speech, read_batches
from sheen.scoring.code_usage import entropy_bits, level_use

BINS = 40
"""A histogram has about so many intervals at most."""


@dataclass(frozen=True)
class RunTimes:
    """What one run did and how long it took; `rows` 0 where a run had nothing left to do."""

    seconds: float
    """Wall time, > 0."""
    stages: dict[str, float]
    """Busy seconds of all workers: "read", "decode", "resample", "encode", "write"."""
    idle: float | None
    """Seconds that encoding workers waited while rows were queued, over all workers."""
    workers: int
    audio_seconds: float
    """Audio encoded in this run."""
    steady: float | None
    """Audio seconds per second while all workers had blocks; None for too few of them."""
    rows: int
    """Rows done in this run."""


def summarise(
    rows_folder: str, sample_rate: int, codebook_size: int, times: RunTimes
) -> dict[str, Any]:
    """The report on all rows of a folder, of this run and of those before it.

    A recording is a key; `utterances`, `hours` and `codes` count each shift of it, all else counts
    it once. Lengths are those decoded; of a recording that came as codes, those of its codes.
    `seconds`, `audio_seconds_per_second` and `this_run` are of this run alone. Hours are given to
    1e-6, percentiles are exact. Rejects and speakers start with the most. Raises
    RuntimeError when a recording stands there both encoded and rejected, or a row twice, or when
    a code is none of the codec's.
    """
    seen = Seen()
    speech = Speech(codebook_size)
    for batch in read_batches(rows_folder, ENCODED, Speech.COLUMNS):
        speech.add(batch, seen.mark(batch, ENCODED), sample_rate)
    rejects = Rejects()
    for batch in read_batches(rows_folder, REJECTED, Rejects.COLUMNS):
        seen.mark(batch, REJECTED)
        rejects.add(batch)
    seen.refuse_doubles(rows_folder)
    seconds = np.frombuffer(speech.seconds, np.float32)
    hours = speech.samples / sample_rate / 3600
    heard = float(seconds.sum(dtype=np.float64))
    return {
        "rows_in": int(np.count_nonzero(seen.marks)),
        "rows_out": len(seconds),
        "utterances": speech.utterances,
        "hours": round(hours, 6),
        "hours_in": round((heard + rejects.seconds) / 3600, 6),
        "hours_rejected": round(rejects.seconds / 3600, 6),
        "seconds": round(times.seconds, 2),
        "audio_seconds_per_second": round(times.audio_seconds / times.seconds, 2),
        "rejects": rejects.by_reason(),
        "duration": _spread(seconds),
        "speech_rate": _spread(np.frombuffer(speech.rates, np.float32)),
        "codes": [
            asdict(level_use(counts)) | {"entropy_bits": round(entropy_bits(counts), 3)}
            for counts in speech.counts
        ],
        "speakers": speech.speakers(),
        "speaker_count": len(speech.by_speaker),
        "this_run": _this_run(times),
    }


def sample_rows(rows_folder: str, count: int) -> list[dict[str, Any]]:
    """Up to `count` encoded recordings, evenly spread over the keys and in their order.

    Of each the row without a shift: id, text, speaker, key, n_samples, snac_codes, source.
    """
    found: array[int] = array("q")
    for batch in read_batches(rows_folder, ENCODED, ["key"]):
        found.frombytes(batch["key"].to_numpy().tobytes())
    keys = np.unique(np.frombuffer(found, np.int64))
    count = min(count, len(keys))
    if count < 1:
        return []
    chosen = keys[(2 * np.arange(count) + 1) * len(keys) // (2 * count)]
    columns = ["id", "text", "speaker", "key", "n_samples", "snac_codes", "source"]
    only = pads.field("key").isin(pa.array(chosen))
    rows: dict[int, dict[str, Any]] = {}
    for batch in read_batches(rows_folder, ENCODED, columns, only):
        for row in batch.to_pylist():
            # A shift's id is the recording's and more.
            if row["key"] not in rows or len(row["id"]) < len(rows[row["key"]]["id"]):
                rows[row["key"]] = row
    return [rows[key] for key in chosen.tolist()]


def _spread(values: NDArray[np.float32]) -> dict[str, Any]:
    """The distribution of values `[n]` >= 0. The histogram leaves out those `above` its end."""
    names = ("min", "p5", "p50", "p95", "max")
    if not len(values):
        nothing = {"edges": [], "counts": [], "above": 0}
        return {"count": 0, "mean": None, **dict.fromkeys(names), "histogram": nothing}
    points = np.percentile(values, [0, 5, 50, 95, 100]).tolist()
    # A single recording of an hour must not squeeze all others into one interval.
    top = min(points[4], 2 * points[3]) or 1.0
    width = _round_up(top / BINS)
    edges = [round(width * place, 9) for place in range(int(np.ceil(top / width)) + 1)]
    counts = np.histogram(values, edges)[0].tolist()
    return {
        "count": len(values),
        "mean": round(float(values.mean(dtype=np.float64)), 3),
        **{name: round(point, 3) for name, point in zip(names, points, strict=True)},
        "histogram": {"edges": edges, "counts": counts, "above": len(values) - sum(counts)},
    }


def _round_up(value: float) -> float:
    """To 1, 2, 2.5 or 5 times a power of ten, so that a histogram's edges are round numbers."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value))


def _this_run(times: RunTimes) -> dict[str, Any]:
    """`audio_hours_per_hour`, and `idle_share` of the time that the workers had, all together."""
    share = None
    if times.idle is not None and times.rows:
        share = round(times.idle / (times.workers * times.seconds), 4)
    speed = round(times.audio_seconds / times.seconds, 2)
    return asdict(times) | {"audio_hours_per_hour": speed, "idle_share": share}
