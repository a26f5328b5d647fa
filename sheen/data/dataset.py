"""The dataset of codes on disk: the utterance schema, `dataset.json`, and reading both.

Owns the folder's layout and format version, and the check that codes fit the codec. Parquet and
JSONL files of codes from elsewhere are read under the same keys as the encode job's inputs; rows
that the job would reject are dropped and counted. Rows hold codes per level, not token ids, so the
token layout can change without encoding again. Refuses other format versions by name.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import NDArray
from pyarrow import fs
from pydantic import BaseModel

from sheen.codec.info import CodecInfo
from sheen.codec.layout import TokenLayout
from sheen.data.readers import jsonl, parquet
from sheen.data.schema import CODES_KEY
from sheen.storage import files, folders, uris
from sheen.text.normalization import NemoStep
from sheen.text.prompt import normalize
from sheen.text.steps import NormalizerSteps, text_normalization

FORMAT_VERSION = 2
INFO_FILE = "dataset.json"
REPORT_FILE = "report.json"
ROWS = "rows"
ENCODED = f"{ROWS}/status=encoded"
LARGE_FILE = 128 << 20  # bytes

CODES_TYPE: pa.DataType = pa.list_(pa.list_(pa.int16()))
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", pa.string()),
    ("text", pa.string()),
    ("speaker", pa.string()),
    ("n_samples", pa.int64()),
    ("snac_codes", CODES_TYPE),
]
UTTERANCE_SCHEMA = pa.schema(_FIELDS)
"""One utterance. `n_samples`: true length at the codec's rate; codes cover it, padded up. Further
columns are optional; of those `instruction` is read."""


class DatasetInfo(BaseModel, extra="forbid"):
    """The content of `dataset.json`. It is written last: a folder without it is not finished."""

    format_version: Literal[2] = 2
    codec: CodecInfo
    sample_rate: int
    """Hz."""
    normalizer: NormalizerSteps = ()
    """Normalization steps of the texts, in order; empty for texts as written."""
    tags: list[str] = []
    """Words such as `<laugh>` that these steps have left as they are."""

    @property
    def text_normalization(self) -> NemoStep | None:
        return text_normalization(self.normalizer)


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
    """For each reason, the first row dropped for it and the details."""
    instructions: list[str | None] = field(default_factory=list)
    """The instruction of each text; may be omitted if no text has one."""

    def __post_init__(self) -> None:
        self.instructions = self.instructions or [None] * len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def codes(self, index: int) -> NDArray[np.int16]:
        """`[frames, tokens_per_frame]` of one utterance."""
        return self.frames[self.offsets[index] : self.offsets[index + 1]]


def write_info(folder: str, info: DatasetInfo) -> None:
    files.write_bytes(uris.join(folder, INFO_FILE), folders.dump_record(info))


def read_info(folder: str) -> DatasetInfo:
    """Read `dataset.json`; ValueError says what the folder is instead."""
    path = uris.join(folder, INFO_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: {folder} is not a finished dataset of codes. "
            "Make one with jobs/encode.py, or run it again if it was interrupted."
        )
    return folders.read_record(path, DatasetInfo)


def read_utterances(location: str, layout: TokenLayout) -> Utterances:
    """Read every utterance of an encoded dataset folder, or of a Parquet or JSONL file of codes.

    Rows with codes that the codec could not have made, or without text, are dropped and counted.
    Raises ValueError when nothing can be read or nothing is left.
    """
    if not files.exists(location):
        raise ValueError(f"{location}: no such file or folder")
    if files.kind(location) != fs.FileType.File:
        if not files.exists(uris.join(location, ENCODED)):
            raise ValueError(f"{location}: it has no folder {ENCODED}")
        rows = _parquet_rows(uris.join(location, ENCODED))
    elif location.endswith(".parquet"):
        rows = _parquet_rows(location)
    else:
        rows = _json_rows(location)
    read = Utterances([], [], np.zeros((0, layout.tokens_per_frame), np.int16), np.zeros(1, int))
    grids, lengths = [read.frames], [0]
    for row in rows:
        where = f"{row.place} (id {row.name!r})" if row.name else row.place
        if row.problem:
            _drop(read, row.problem[0], f"{where}: {row.problem[1]}")
        elif problem := "no snac_codes" if row.codes is None else layout.check(row.codes):
            _drop(read, "bad codes", f"{where}: {problem}")
        elif not (text := normalize(row.text or "")):
            _drop(read, "no text", f"{where}: the text is empty")
        else:
            grids.append(layout.interleave(row.codes).astype(np.int16, copy=False))
            lengths.append(len(grids[-1]))
            read.texts.append(text)
            read.speakers.append(normalize(row.speaker or "") or None)
            read.instructions.append(normalize(row.instruction or "") or None)
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
        instructions=[how for part in parts for how in part.instructions],
    )
    for part in parts:
        joined.dropped += part.dropped
        joined.examples = part.examples | joined.examples
    return joined


def _drop(read: Utterances, reason: str, example: str) -> None:
    read.dropped[reason] += 1
    read.examples.setdefault(reason, example)


@dataclass(frozen=True)
class _Row:
    """A row as read: `problem` is the reason to drop it, and the details."""

    place: str
    name: str | None
    text: str | None
    speaker: str | None
    instruction: str | None
    codes: Any
    problem: tuple[str, str] | None = None


def _json_rows(location: str) -> Iterator[_Row]:
    names = ("id", "text", "speaker", "instruction", "source", "reason", "detail")
    for batch in jsonl.read(location, None, codes=True).batches:
        codes = _codes_in(location, batch.column(CODES_KEY))
        for row, row_codes in zip(batch.select(names).to_pylist(), codes, strict=True):
            place = f"line {row['source'].rpartition(':')[2]}"
            problem = None
            if row["reason"]:
                problem = (row["reason"], row["detail"].removeprefix(f"{place}: "))
            name, text, speaker, instruction = (row[name] for name in names[:4])
            yield _Row(place, name, text, speaker, instruction, row_codes, problem)


def _parquet_rows(location: str) -> Iterator[_Row]:
    """The rows of a file or folder. ValueError names a file that is not whole Parquet of codes.

    It is not skipped: it may hold hours of speech, and encoding again or deleting it is quick.
    """
    filesystem, path = uris.open_filesystem(location)
    single = files.kind(location) == fs.FileType.File
    found = [path] if single else sorted(files.list_files(location, recursive=True))
    paths = [path for path in found if path.endswith(".parquet")]

    def stream(path: str) -> Iterator[pa.RecordBatch]:
        try:
            source = pads.dataset(path, filesystem=filesystem, format="parquet")
            columns = [*parquet.field_columns(path, source.schema), CODES_KEY]
            _check_codes_column(path, source.schema)
            yield from source.to_batches(columns=columns)
        except TypeError as error:
            raise ValueError(f"{path}: {error}") from error
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path}: not a whole Parquet file of encoded speech ({error}). Encode again, or "
                "delete this file to train without its rows"
            ) from error

    def read(path: str) -> Iterable[pa.RecordBatch]:
        """Ahead of its turn, but for a file that is large: a few of those would fill the memory."""
        size = filesystem.get_file_info(path).size or 0
        return list(stream(path)) if size <= LARGE_FILE else stream(path)

    first = 0
    for path, batches in zip(paths, files.map_ahead(read, paths), strict=True):
        for batch in batches:
            try:
                yield from _batch_rows(path, batch, first)
            except TypeError as error:
                raise ValueError(f"{path}: {error}") from error
            first += batch.num_rows


def _check_codes_column(path: str, schema: pa.Schema) -> None:
    if CODES_KEY not in schema.names:
        raise ValueError(
            f"{path}: it has no column {CODES_KEY!r}; its columns are {', '.join(schema.names)}"
        )
    kind = schema.field(CODES_KEY).type
    if _is_list(kind) and (_is_list(kind.value_type) or pa.types.is_null(kind.value_type)):
        return
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return
    raise ValueError(f"{path}: column {CODES_KEY!r} is {kind}, expected {jsonl.CODES_SHAPE}")


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _batch_rows(path: str, batch: pa.RecordBatch, first: int) -> Iterator[_Row]:
    """`first`: the number of the first row."""
    column: Any = batch.column(CODES_KEY)
    said = parquet.column_fields(batch.drop_columns([CODES_KEY]).to_pylist())
    codes = _codes_in(path, column) if _is_list(column.type) else column.to_pylist()
    fields = [said[name] for name in ("id", "text", "speaker", "instruction")]
    rows = zip(codes, *fields, strict=True)
    for place, (row_codes, name, text, speaker, instruction) in enumerate(rows, start=first):
        problem = None
        if isinstance(row_codes, str):
            try:
                row_codes = jsonl.codes_of(row_codes)
            except jsonl.CodesError as error:
                problem = ("bad codes", str(error))
        yield _Row(f"row {place}", name, text, speaker, instruction, row_codes, problem)


def _codes_in(location: str, column: Any) -> Iterator[list[NDArray[np.integer[Any]]] | None]:
    """Codes by level of each row of a column of lists of lists, without a Python object a code.

    Raises ValueError for anything but whole numbers.
    """
    plain = pa.types.is_list(column.type) and pa.types.is_list(column.type.value_type)
    if not plain or not pa.types.is_integer(column.type.value_type.value_type):
        try:
            column = column.cast(pa.list_(pa.list_(pa.int32())))
        except pa.ArrowException as error:
            raise ValueError(
                f"{location}: column {CODES_KEY!r} must hold whole numbers ({error})"
            ) from error
    outer = column.offsets.to_numpy()
    inner = column.values
    bounds = inner.offsets.to_numpy()
    # A null code becomes one that no codec has, for the layout to refuse.
    values = pc.fill_null(inner.values, -1).to_numpy(zero_copy_only=False)
    valid = pc.is_valid(column).to_numpy(zero_copy_only=False)
    for row in range(len(column)):
        levels = range(outer[row], outer[row + 1])
        codes = [values[bounds[level] : bounds[level + 1]] for level in levels]
        yield codes if valid[row] else None
