"""Sums over the rows that an encode job wrote, batch by batch, and the proof that none is double.

Owns reading the rows and everything that grows with their number: 8 bytes a row (a hash, to find
rows written twice), 9 bytes a recording (a mark, its length, its rate of speech), an entry a
speaker. Makes no report of it: that is `sheen.encode.summary`'s.
"""

import heapq
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray

from sheen.encode.output import ENCODED, REJECTED
from sheen.storage import files, uris

EXAMPLES_PER_REASON = 5
IDS_PER_REASON = 1000
SPEAKERS = 1000

BATCH_ROWS = 1024  # their codes, as integers of 8 bytes, are about 10 MB where clips take 15 s
MARKS = {ENCODED: 1, REJECTED: 2}


def read_batches(
    rows_folder: str, status: str, columns: Sequence[str], only: pads.Expression | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of one status; none where the folder is missing. Files that are no rows stay out."""
    folder = uris.join(rows_folder, f"status={status}")
    filesystem, _ = uris.open_filesystem(folder)
    paths = [path for path in files.list_files(folder, recursive=True) if path.endswith(".parquet")]
    if paths:
        source = pads.dataset(sorted(paths), filesystem=filesystem, format="parquet")
        yield from source.to_batches(
            columns=list(columns), filter=only, batch_size=BATCH_ROWS, batch_readahead=4
        )


class Seen:
    """Which recordings were met encoded and which rejected, and which rows twice."""

    def __init__(self) -> None:
        self.marks: NDArray[np.uint8] = np.zeros(0, np.uint8)
        """By key, as keys are the places of rows in the input."""
        self._rows: array[int] = array("q")

    def mark(self, batch: pa.RecordBatch, status: str) -> NDArray[np.bool_]:
        """Note the rows; says of each whether it is the first of its recording."""
        keys = batch["key"].to_numpy()
        self._rows.frombytes(_hash_rows(batch).tobytes())
        if len(keys) and keys.max() >= len(self.marks):
            room = max(int(keys.max()) + 1, 2 * len(self.marks)) - len(self.marks)
            self.marks = np.concatenate([self.marks, np.zeros(room, np.uint8)])
        first = np.zeros(len(keys), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        first &= self.marks[keys] & MARKS[status] == 0
        self.marks[keys] |= MARKS[status]
        return first

    def refuse_doubles(self, rows_folder: str) -> None:
        """RuntimeError naming the first recording that was written by two."""
        if len(both := np.flatnonzero(self.marks == sum(MARKS.values()))):
            raise RuntimeError(
                f"{rows_folder}: the recording with key {both[0]} stands there both encoded and "
                "rejected: was another run writing there? Encode again into an empty folder"
            )
        rows = np.sort(np.frombuffer(self._rows, np.int64))
        doubles = np.unique(rows[1:][rows[1:] == rows[:-1]])
        if not len(doubles):
            return
        suspects: list[NDArray[np.int64]] = []  # [2, rows]: keys, hashes
        for status in MARKS:
            for batch in read_batches(rows_folder, status, ["key", "id"]):
                pairs = np.stack([batch["key"].to_numpy(), _hash_rows(batch)])
                suspects.append(pairs[:, np.isin(pairs[1], doubles)])
        # Different keys may share a hash by chance, different ids of one key may not.
        pairs, counts = np.unique(np.concatenate(suspects, axis=1), axis=1, return_counts=True)
        if (counts > 1).any():
            raise RuntimeError(
                f"{rows_folder}: a row of the recording with key {pairs[0, counts > 1][0]} stands "
                "there twice: was another run writing there? Encode again into an empty folder"
            )


def _hash_rows(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """A hash of key and id of each row, the same throughout this process."""
    pairs = zip(batch["key"].to_pylist(), batch["id"].to_pylist(), strict=True)
    return np.fromiter(map(hash, pairs), np.int64, batch.num_rows)


class Speech:
    """Sums over encoded rows. `counts` `[levels, codebook size]`: how often each code stands."""

    COLUMNS = ("key", "id", "text", "speaker", "n_samples", "seconds", "snac_codes")

    def __init__(self, codebook_size: int) -> None:
        self.utterances = 0
        self.samples = 0
        self.seconds: array[float] = array("f")
        """Of each recording."""
        self.rates: array[float] = array("f")
        """Characters of text per second of each recording."""
        self.by_speaker: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        """Recordings and seconds."""
        self.counts: NDArray[np.int64] = np.zeros((0, codebook_size), np.int64)
        self._size = codebook_size

    def add(self, batch: pa.RecordBatch, first: NDArray[np.bool_], sample_rate: int) -> None:
        """Add a batch; `first` `[rows]` marks the rows that are the first of their recording."""
        self.utterances += batch.num_rows
        self.samples += pc.sum(batch["n_samples"]).as_py() or 0
        self._count_codes(batch)
        rows: Any = batch.filter(pa.array(first))  # to pyarrow-stubs no column has a known type
        of_codes = pc.divide(rows["n_samples"].cast(pa.float64()), float(sample_rate))
        seconds = pc.coalesce(rows["seconds"], of_codes).to_numpy()
        self.seconds.frombytes(seconds.astype(np.float32).tobytes())
        characters = pc.utf8_length(rows["text"]).fill_null(0).to_numpy()
        sounds = seconds > 0
        rates = characters[sounds] / seconds[sounds]
        self.rates.frombytes(rates.astype(np.float32).tobytes())
        names = rows["speaker"].fill_null("").dictionary_encode()
        places = names.indices.to_numpy()
        recordings = np.bincount(places).tolist()
        sums = np.bincount(places, weights=seconds).tolist()
        for name, *more in zip(names.dictionary.to_pylist(), recordings, sums, strict=True):
            entry = self.by_speaker[name]
            entry[0] += more[0]
            entry[1] += more[1]

    def speakers(self) -> dict[str, dict[str, Any]]:
        """Those heard longest, longest first; "" are the recordings that name nobody."""
        longest = sorted(self.by_speaker.items(), key=lambda item: (-item[1][1], item[0]))
        return {
            name: {"recordings": recordings, "hours": round(seconds / 3600, 6)}
            for name, (recordings, seconds) in longest[:SPEAKERS]
        }

    def _count_codes(self, batch: pa.RecordBatch) -> None:
        levels = pc.list_flatten(batch["snac_codes"])
        levels_per_row = pc.list_value_length(batch["snac_codes"]).fill_null(0).to_numpy()
        codes = pc.list_flatten(levels).to_numpy().astype(np.int64)
        if not len(codes):
            return
        if codes.min() < 0 or codes.max() >= self._size:
            self._refuse(batch)
        # The level of each list is its place in its row.
        starts = np.cumsum(levels_per_row) - levels_per_row
        level = np.arange(len(levels)) - np.repeat(starts, levels_per_row)
        codes += np.repeat(level * self._size, pc.list_value_length(levels).to_numpy())
        most = max(int(levels_per_row.max()), len(self.counts))
        counts = np.bincount(codes, minlength=most * self._size).reshape(most, -1)
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def _refuse(self, batch: pa.RecordBatch) -> None:
        for row in batch.select(["key", "id", "snac_codes"]).to_pylist():
            codes = [code for level in row["snac_codes"] or [] for code in level]
            if wrong := [code for code in codes if not 0 <= code < self._size]:
                raise RuntimeError(
                    f"encoded row {row['id']!r} (key {row['key']}): snac_codes holds {wrong[0]}, "
                    f"the codec has codes 0 to {self._size - 1}: was the run of another "
                    "codec writing there? Encode again into an empty folder"
                )


class Rejects:
    """Rejected rows by reason; of each reason those with the lowest keys are kept."""

    COLUMNS = ("key", "id", "source", "reason", "detail", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self._rows: dict[str, int] = defaultdict(int)
        self._first: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def add(self, batch: pa.RecordBatch) -> None:
        self.seconds += pc.sum(batch["seconds"]).as_py() or 0.0
        reasons: Any = batch["reason"]
        for reason in pc.unique(reasons).to_pylist():
            rows = batch.filter(pc.equal(reasons, reason))
            self._rows[reason] += rows.num_rows
            self._first[reason] = heapq.nsmallest(
                IDS_PER_REASON, self._first[reason] + rows.to_pylist(), key=lambda row: row["key"]
            )

    def by_reason(self) -> dict[str, dict[str, Any]]:
        """The most frequent reason first."""
        order = sorted(self._rows, key=lambda reason: (-self._rows[reason], reason))
        return {
            reason: {
                "rows": self._rows[reason],
                "ids": [row["id"] for row in self._first[reason]],
                "examples": [
                    f"{row['source']}: {row['detail']}"
                    for row in self._first[reason][:EXAMPLES_PER_REASON]
                ],
            }
            for reason in order
        }
