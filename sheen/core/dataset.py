"""The dataset of codes on disk: the utterance row, `dataset.json`, and reading both.

Owns the Arrow schema, the folder's layout and its format version, and the check that codes are
codes of the codec they claim. Rows hold codes per level, not token ids, so that the token layout
can change without encoding again. Refuses another format version by name.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from pyarrow import fs
from pydantic import BaseModel, ValidationError

from sheen.core import files
from sheen.core.codec_info import CodecInfo
from sheen.core.normalisation import NormalisationInfo
from sheen.core.prompt import normalise
from sheen.core.tokens import TokenLayout

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
REPORT_FILE = "report.json"
ROWS = "rows"
ENCODED = f"{ROWS}/status=encoded"
CODEC_FOLDER = "codec"

CODES_TYPE: pa.DataType = pa.list_(pa.list_(pa.int16()))
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
    ("n_samples", pa.int64()),
    ("snac_codes", CODES_TYPE),
]
UTTERANCE_SCHEMA = pa.schema(_FIELDS)
"""One utterance. `n_samples`: true length at the codec's rate; codes cover it, padded up."""


class DatasetInfo(BaseModel, extra="forbid"):
    """What `dataset.json` says. It is written last: a folder without it is not finished."""

    format_version: int
    codec: CodecInfo
    sample_rate: int
    """Hz."""
    normalisation: NormalisationInfo | None = None
    """How the texts got their spoken form; None for texts as they were."""


@dataclass
class Utterances:
    """Utterances in memory, codes in slot order, ready for batching.

    `frames` `[F, tokens_per_frame]` int16 holds all utterances' frames end to end; utterance i
    owns rows `offsets[i]:offsets[i + 1]`. 10,000 hours are about 6 GB. `dropped` counts by reason
    the rows that were read and not kept.
    """

    texts: list[str]
    speakers: list[str | None]
    frames: NDArray[np.int16]
    offsets: NDArray[np.int64]
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    """For each reason, the first row it struck and why."""

    def __len__(self) -> int:
        return len(self.texts)

    def codes(self, index: int) -> NDArray[np.int16]:
        """`[frames, tokens_per_frame]` of one utterance."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]


def write_info(folder: str, info: DatasetInfo) -> None:
    files.write_bytes(
        files.join(folder, INFO_FILE), info.model_dump_json(indent=2).encode() + b"\n"
    )


def read_info(folder: str) -> DatasetInfo:
    """Read `dataset.json`; ValueError says what the folder is instead."""
    path = files.join(folder, INFO_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: {folder} is not a finished dataset of codes. "
            "Make one with jobs/encode.py, or run it again if it was interrupted."
        )
    try:
        data = json.loads(files.read_bytes(path))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected an object")
    if data.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {data.get('format_version')!r}, this Sheen reads "
            f"{FORMAT_VERSION}. Encode the recordings again with this version."
        )
    try:
        return DatasetInfo.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {error}") from error


def codec_source(folder: str, codec: CodecInfo) -> str:
    """Where to load the codec of a dataset or checkpoint from: its own copy, or the hub id."""
    return files.join(folder, CODEC_FOLDER) if codec.embedded else codec.source


def read_utterances(location: str, layout: TokenLayout) -> Utterances:
    """Read every utterance of an encoded dataset folder, or of a Parquet or JSONL file of codes.

    Rows with codes that the codec could not have made, or without text, are dropped and counted.
    Raises ValueError when nothing can be read or nothing is left.
    """
    if not files.exists(location):
        raise ValueError(f"{location}: no such file or folder")
    batches: Iterator[tuple[int, pa.RecordBatch]]
    if files.kind(location) == fs.FileType.File:
        read_file = _parquet_batches if location.endswith(".parquet") else _jsonl_batches
        batches = read_file(location)
    else:
        if not files.exists(files.join(location, ENCODED)):
            raise ValueError(f"{location}: it has no folder {ENCODED}")
        batches = _parquet_batches(files.join(location, ENCODED))
    read = Utterances([], [], np.zeros((0, layout.tokens_per_frame), np.int16), np.zeros(1, int))
    grids, lengths = [read.frames], [0]
    for first_row, batch in batches:
        for row, (name, text, speaker, codes) in enumerate(_rows(batch), start=first_row):
            where = f"row {row} (id {name!r})" if name else f"row {row}"
            problem = layout.check(codes) if codes is not None else "no snac_codes"
            if problem:
                _drop(read, "bad codes", f"{where}: {problem}")
            elif not text or not normalise(text):
                _drop(read, "no text", f"{where}: the text is empty")
            else:
                grids.append(layout.interleave(codes).astype(np.int16, copy=False))
                lengths.append(len(grids[-1]))
                read.texts.append(normalise(text))
                read.speakers.append(normalise(speaker) or None if speaker else None)
    if not read.texts:
        struck = "; ".join(read.examples.values()) or "it has no rows"
        raise ValueError(f"{location}: no usable utterance ({struck})")
    read.frames = np.concatenate(grids)
    read.offsets = np.cumsum(lengths)
    return read


def join(parts: Sequence[Utterances]) -> Utterances:
    """Several datasets as one, in their order; of a reason to drop rows the first example stays."""
    if len(parts) == 1:
        return parts[0]
    joined = Utterances(
        [text for part in parts for text in part.texts],
        [speaker for part in parts for speaker in part.speakers],
        np.concatenate([part.frames for part in parts]),
        np.cumsum(np.concatenate([[0], *(np.diff(part.offsets) for part in parts)])),
    )
    for part in parts:
        joined.dropped += part.dropped
        joined.examples = part.examples | joined.examples
    return joined


def _drop(read: Utterances, reason: str, example: str) -> None:
    read.dropped[reason] += 1
    read.examples.setdefault(reason, example)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[str | None, str | None, str | None, Any]]:
    names, texts, speakers = (batch.column(name).to_pylist() for name in ("id", "text", "speaker"))
    column: Any = batch.column("snac_codes")
    outer = column.offsets.to_numpy()
    inner = column.values
    bounds = inner.offsets.to_numpy()
    # A null code becomes one that no codec has, for the layout to refuse.
    values = pc.fill_null(inner.values, -1).to_numpy(zero_copy_only=False)
    valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
    for row, (name, text, speaker) in enumerate(zip(names, texts, speakers, strict=True)):
        codes = None
        if valid[row]:
            codes = [
                values[bounds[level] : bounds[level + 1]]
                for level in range(outer[row], outer[row + 1])
            ]
        yield name, text, speaker, codes


def _parquet_batches(location: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Of a file or a folder. Raises ValueError naming a file that is no whole Parquet file of ours.

    It is not skipped: it may hold hours of speech, and encoding again or deleting it is quick.
    """
    columns = ["id", "text", "speaker", "snac_codes"]
    filesystem, path = files.open_filesystem(location)
    single = files.kind(location) == fs.FileType.File
    found = [path] if single else sorted(files.list_files(location, recursive=True))
    first = 0
    for path in found:
        if not path.endswith(".parquet"):
            continue
        try:
            source = pads.dataset(path, filesystem=filesystem, format="parquet")
            for batch in source.to_batches(columns=columns):
                yield first, batch
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: not a whole Parquet file of encoded speech ({error}). Encode again, or "
                "delete this file to train without its rows"
            ) from error


_JSONL_BATCH = 1024


def _jsonl_batches(path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Lines of `{"text", "snac_codes", optional "id", "speaker"}`, numbered from 1."""
    rows: list[dict[str, Any]] = []
    first = 1
    lines = files.read_bytes(path).removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines if lines != [b""] else [], start=1):
        try:
            row = json.loads(line)
            codes = row["snac_codes"]
            if any(isinstance(code, float) for level in codes or [] for code in level or []):
                raise TypeError("codes must be whole numbers")
            row = {"id": row.get("id"), "text": row["text"], "speaker": row.get("speaker")}
            row |= {"snac_codes": codes}
            _code_batch([row])
            rows.append(row)
        except (ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise ValueError(
                f'{path}, line {number}: expected {{"text": ..., "snac_codes": [[...], ...]}} '
                f"({type(error).__name__}: {error})"
            ) from error
        if len(rows) == _JSONL_BATCH:
            yield first, _code_batch(rows)
            first, rows = number + 1, []
    if rows:
        yield first, _code_batch(rows)


def _code_batch(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("text", pa.string()),
            ("speaker", pa.string()),
            ("snac_codes", pa.list_(pa.list_(pa.int32()))),
        ]
    )
    return pa.RecordBatch.from_pylist(rows, schema=schema)
