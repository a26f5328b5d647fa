"""The statistics of an encode job: `report.json`, summed file by file as rows are merged.

Owns the report's content. A recording is a key: `utterances`, `hours` and `codes` count each of its
shifts, everything else counts it once. Memory grows by 8 bytes per recording (its key) and an entry
per speaker. Times (`RunTimes`) are measured by the job; the page is `sheen.encode.report`'s.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sheen.encode.output import ENCODED, REJECTED
from sheen.scoring.code_usage import entropy_bits, level_use

EXAMPLES_PER_REASON = 5
IDS_PER_REASON = 1000
SPEAKERS = 1000
STEP = 0.1
"""Lengths (seconds) and speech rates (characters per second) are counted in steps of this size."""
BINS = 40
"""Most intervals of a drawn histogram, roughly."""


@dataclass(frozen=True)
class RunTimes:
    """Work and times of one run; `rows` is 0 if nothing was left to do."""

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


class Distribution:
    """Values >= 0, counted in steps of STEP; minimum, maximum and mean are exact."""

    def __init__(self) -> None:
        self._steps: Counter[int] = Counter()
        self._sum, self._least, self._most = 0.0, np.inf, 0.0

    def add(self, values: NDArray[np.float64]) -> None:
        if len(values):
            steps, counts = np.unique(np.rint(values / STEP).astype(np.int64), return_counts=True)
            self._steps.update(dict(zip(steps.tolist(), counts.tolist(), strict=True)))
            self._sum += float(values.sum())
            self._least = min(self._least, float(values.min()))
            self._most = max(self._most, float(values.max()))

    def report(self) -> dict[str, Any]:
        """Percentiles are rounded to STEP. The histogram omits values `above` its end."""
        if not self._steps:
            nothing = dict.fromkeys(("mean", "min", "p5", "p50", "p95", "max"))
            histogram: dict[str, Any] = {"edges": [], "counts": [], "above": 0}
            return {"count": 0, **nothing, "histogram": histogram}
        steps = np.array(sorted(self._steps))
        counts = np.array([self._steps[step] for step in steps.tolist()])
        total = int(counts.sum())
        # The nearest rank: the first step that so many of the values do not exceed.
        ranks = np.searchsorted(np.cumsum(counts), [np.ceil(q * total) for q in (0.05, 0.5, 0.95)])
        p5, p50, p95 = (round(float(steps[rank]) * STEP, 6) for rank in ranks)
        # A single recording of an hour must not put all others into one interval.
        top = min(int(steps[-1]), 2 * int(steps[ranks[2]]))
        width = _round_up(top / BINS)
        bins = top // width + 1
        drawn = np.bincount(steps // width, weights=counts)[:bins].astype(int).tolist()
        return {
            "count": total,
            "mean": round(self._sum / total, 3),
            "min": round(self._least, 3),
            "p5": p5, "p50": p50, "p95": p95,
            "max": round(self._most, 3),
            "histogram": {
                "edges": [round(width * place * STEP, 6) for place in range(bins + 1)],
                "counts": drawn,
                "above": total - sum(drawn),
            },
        }  # fmt: skip


class Statistics:
    """Sums over the merged rows of a dataset."""

    def __init__(self, sample_rate: int, codebook_size: int) -> None:
        self.keys: list[NDArray[np.int64]] = []
        """The distinct keys of each call of `add`, by status."""
        self._rate, self._size = sample_rate, codebook_size
        self._recordings = Counter({ENCODED: 0, REJECTED: 0})
        self._seconds = {ENCODED: 0.0, REJECTED: 0.0}
        self._utterances = self._samples = 0
        self._lengths, self._speech_rates = Distribution(), Distribution()
        self._speakers: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        self._codes: NDArray[np.int64] = np.zeros((0, codebook_size), np.int64)
        self._reasons: Counter[str] = Counter()
        self._rejected: dict[str, list[tuple[int, str, str]]] = defaultdict(list)

    def add(self, rows: pa.Table) -> None:
        """Rows of `sheen.encode.output.BLOCK_SCHEMA`, sorted by key, with all shifts of a key."""
        encoded = rows.filter(pc.field("status") == ENCODED).combine_chunks()
        self._utterances += len(encoded)
        self._samples += pc.sum(encoded["n_samples"]).as_py() or 0
        self._count_codes(encoded)
        self._add_recordings(encoded.take(self._first(encoded)))
        self._add_rejected(rows.filter(pc.field("status") == REJECTED))

    def report(self, times: RunTimes) -> dict[str, Any]:
        """`report.json`: of all rows, except `seconds`, `audio_seconds_per_second` and `this_run`.

        Lengths are those of decoded audio, or of codes in the input. Reasons and speakers are
        sorted by count.
        """
        idle_share = None
        if times.idle is not None and times.rows:
            idle_share = round(times.idle / (times.workers * times.seconds), 4)
        speed = round(times.audio_seconds / times.seconds, 2)
        longest = sorted(self._speakers.items(), key=lambda item: (-item[1][1], item[0]))
        reasons = sorted(self._reasons, key=lambda reason: (-self._reasons[reason], reason))
        return {
            "rows_in": self._recordings.total(),
            "rows_out": self._recordings[ENCODED],
            "utterances": self._utterances,
            "hours": round(self._samples / self._rate / 3600, 6),
            "hours_in": round(sum(self._seconds.values()) / 3600, 6),
            "hours_rejected": round(self._seconds[REJECTED] / 3600, 6),
            "seconds": round(times.seconds, 2),
            "audio_seconds_per_second": speed,
            "rejects": {reason: self._reason(reason) for reason in reasons},
            "duration": self._lengths.report(),
            "speech_rate": self._speech_rates.report(),
            "codes": [
                asdict(level_use(counts)) | {"entropy_bits": round(entropy_bits(counts), 3)}
                for counts in self._codes
            ],
            "speakers": {
                name: {"recordings": int(count), "hours": round(seconds / 3600, 6)}
                for name, (count, seconds) in longest[:SPEAKERS]
            },
            "speaker_count": len(self._speakers),
            "this_run": asdict(times) | {"audio_hours_per_hour": speed, "idle_share": idle_share},
        }

    def _reason(self, reason: str) -> dict[str, Any]:
        first = sorted(self._rejected[reason])[:IDS_PER_REASON]
        return {
            "rows": self._reasons[reason],
            "ids": [name for _, name, _ in first],
            "examples": [example for _, _, example in first[:EXAMPLES_PER_REASON]],
        }

    def _first(self, rows: pa.Table) -> NDArray[np.int64]:
        """The place of each key's first row."""
        keys, first = np.unique(rows["key"].to_numpy(), return_index=True)
        self.keys.append(keys)
        return first

    def _add_recordings(self, rows: Any) -> None:
        """One row a recording."""
        of_codes = pc.divide(rows["n_samples"].cast(pa.float64()), float(self._rate))
        seconds = pc.coalesce(rows["seconds"], of_codes).to_numpy()
        self._recordings[ENCODED] += len(rows)
        self._seconds[ENCODED] += float(seconds.sum())
        self._lengths.add(seconds)
        characters = pc.utf8_length(rows["text"]).fill_null(0).to_numpy()
        self._speech_rates.add(characters[seconds > 0] / seconds[seconds > 0])
        for name, length in zip(rows["speaker"].to_pylist(), seconds.tolist(), strict=True):
            entry = self._speakers[name or ""]
            entry[0] += 1
            entry[1] += length

    def _add_rejected(self, rows: Any) -> None:
        self._first(rows)
        self._recordings[REJECTED] += len(rows)
        self._seconds[REJECTED] += pc.sum(rows["seconds"]).as_py() or 0.0
        self._reasons.update(rows["reason"].to_pylist())
        for row in rows.select(["key", "id", "source", "reason", "detail"]).to_pylist():
            kept = self._rejected[row["reason"]]
            kept.append((row["key"], row["id"], f"{row['source']}: {row['detail']}"))
            if len(kept) == 2 * IDS_PER_REASON:
                self._rejected[row["reason"]] = sorted(kept)[:IDS_PER_REASON]

    def _count_codes(self, rows: Any) -> None:
        column = rows["snac_codes"].combine_chunks()
        levels = pc.list_flatten(column)
        levels_per_row = pc.list_value_length(column).fill_null(0).to_numpy()
        codes = pc.list_flatten(levels).to_numpy().astype(np.int64)
        if not len(codes):
            return
        if codes.min() < 0 or codes.max() >= self._size:
            self._refuse(rows)
        # The level of each list is its place in its row.
        starts = np.cumsum(levels_per_row) - levels_per_row
        level = np.arange(len(levels)) - np.repeat(starts, levels_per_row)
        codes += np.repeat(level * self._size, pc.list_value_length(levels).to_numpy())
        most = max(int(levels_per_row.max()), len(self._codes))
        counts = np.bincount(codes, minlength=most * self._size).reshape(most, -1)
        counts[: len(self._codes)] += self._codes
        self._codes = counts

    def _refuse(self, rows: pa.Table) -> None:
        for row in rows.select(["key", "id", "snac_codes"]).to_pylist():
            codes = [code for level in row["snac_codes"] or [] for code in level]
            if wrong := [code for code in codes if not 0 <= code < self._size]:
                raise RuntimeError(
                    f"encoded row {row['id']!r} (key {row['key']}): snac_codes holds {wrong[0]}, "
                    f"the codec has codes 0 to {self._size - 1}: was the run of another "
                    "codec writing there? Encode again into an empty folder"
                )


def _round_up(value: float) -> int:
    """To 1, 2 or 5 times a power of ten, >= 1, so that a histogram's edges are round numbers."""
    power = 1
    while True:
        for step in (1, 2, 5):
            if step * power >= value:
                return step * power
        power *= 10
