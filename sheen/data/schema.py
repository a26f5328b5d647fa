"""The row schema that every input format is read into, and the columns a user's row may have.

Owns the keys under which a text, id, speaker, instruction, recording and part of a recording are
found, which values count as missing, and the encoding of text files. A part is given in every form
of input by seconds from the recording's first sample on, either of them null for its beginning or
end, and a channel counted from 0, null for the mean of all. A file may hold millions of rows: rows
are kept as Arrow batches, not as Python objects.
"""

import codecs
import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa

from sheen.storage import uris
from sheen.text.prompt import check_characters

ROW_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # null where the input names none; the manifest then gives one
        ("text", pa.string()),
        ("speaker", pa.string()),
        ("instruction", pa.string()),  # how to say the text, in words; null for none
        ("audio", pa.string()),  # path or URI of the file with the recording; null with codes
        # null: the file is the recording; "tar": place is its byte range, offset and size;
        # "parquet": place is row group and row within it, column `audio`
        ("container", pa.string()),
        ("place", pa.list_(pa.int64())),
        ("start", pa.float64()),  # seconds within the recording; null: its beginning
        ("end", pa.float64()),  # null: its end
        ("channel", pa.int64()),  # of the recording, from 0; null: the mean of all
        ("snac_codes", pa.list_(pa.list_(pa.int16()))),  # of rows that bring codes, else null
        ("source", pa.string()),  # where the row stands, for people: "metadata.csv:12"
        ("reason", pa.string()),  # why it is rejected, null while it is not
        ("detail", pa.string()),
    ]
)

KEYS: dict[str, tuple[str, ...]] = {
    "id": ("id", "utterance_id", "utt_id"),
    "text": ("text", "transcription", "sentence", "transcript", "normalized_text"),
    "speaker": ("speaker", "speaker_id", "speaker_name", "voice"),
    "instruction": ("instruction", "instructions"),
    "audio": ("audio", "audio_filepath", "audio_path", "path", "file", "file_name"),
}
"""Keys of JSON and columns of Parquet by field, the same in every form of input and in lists of
prompts: of those that a row has, the first with a value counts."""
CODES_KEY = "snac_codes"
PLACE_KEY = "audio_place"
SPAN_KEYS = ("start", "end")
NEMO_SPAN_KEYS = ("offset", "duration")
CHANNEL_KEY = "audio_channel"
PART_KEYS = (*SPAN_KEYS, *NEMO_SPAN_KEYS, CHANNEL_KEY)
"""Keys of a user's row that `part_of` reads."""
LONGEST_S = 1e9  # some thirty years: no recording is longer

AUDIO_SUFFIXES = (
    ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm", ".ac3", ".aif", ".aifc",
    ".aiff", ".amr", ".au", ".caf", ".m4b", ".mka", ".mp2", ".oga", ".snd", ".sph", ".spx", ".tta",
    ".w64", ".weba", ".wma", ".wv",
)  # fmt: skip

BATCH_ROWS = 1 << 14
STREAM_BUFFER = 1 << 20  # bytes


@dataclass(frozen=True)
class FileRows:
    """The rows of one file, in batches of ROW_SCHEMA."""

    batches: list[pa.RecordBatch]
    unused: frozenset[str] = field(default_factory=frozenset)
    """The user's keys that no column is taken from."""


class RowBuilder:
    """Takes rows of one file until it has `limit` of them; what a row lacks is null."""

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._count = 0
        self._columns: dict[str, list[Any]] = {}
        self._batches: list[pa.RecordBatch] = []
        self._unused: set[str] = set()
        self._begin()

    @property
    def full(self) -> bool:
        return self._count == self._limit

    def add(self, row: dict[str, Any]) -> None:
        for name, column in self._columns.items():
            column.append(row.get(name))
        self._count += 1
        if self._count % BATCH_ROWS == 0:
            self._flush()

    def note_keys(self, keys: Iterable[str], read: Collection[str] = ()) -> None:
        """Note the keys of a user's row; see `unused_keys`."""
        self._unused |= unused_keys(keys, read)

    def finish(self) -> FileRows:
        self._flush()
        return FileRows(self._batches, frozenset(self._unused))

    def _begin(self) -> None:
        self._columns = {name: [] for name in ROW_SCHEMA.names}

    def _flush(self) -> None:
        if self._columns["source"]:
            self._batches.append(pa.RecordBatch.from_pydict(self._columns, schema=ROW_SCHEMA))
        self._begin()


_FIELDS = {key for keys in KEYS.values() for key in keys}


def unused_keys(keys: Iterable[str], read: Collection[str] = ()) -> set[str]:
    """The keys that are neither KEYS nor among the others that a form reads."""
    return set(keys) - _FIELDS - set(read)


def is_none(value: Any) -> bool:
    """Whether a user's value is missing: null, NaN (pandas' null) or ""."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def pick(row: Mapping[str, Any], name: str) -> Any:
    """The value of the first of the KEYS of `name` that the row has a value for, else None."""
    return next((row[key] for key in KEYS[name] if not is_none(row.get(key))), None)


def text_of(value: Any, name: str) -> str:
    """A user's field that must be a string UTF-8 can encode; "" where it is missing."""
    if is_none(value):
        return ""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    check_characters(value, name)
    return value


def name_of(value: Any, name: str) -> str | None:
    """An id or a speaker, which may be a number; None where it is missing."""
    if is_none(value):
        return None
    if type(value) is int:
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        # Where a column of whole numbers has gaps, pandas writes 7.0 for 7.
        return str(int(value)) if value == int(value) else str(value)
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string or a number, not {str(value)[:40]}")
    return text_of(value, name)


def row_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The text, id, speaker and instruction of a user's row. Raises TypeError and ValueError."""
    return {
        "text": text_of(pick(row, "text"), "text"),
        "id": name_of(pick(row, "id"), "id"),
        "speaker": name_of(pick(row, "speaker"), "speaker"),
        "instruction": text_of(pick(row, "instruction"), "instruction") or None,
    }


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
    if not 0 <= value < LONGEST_S:  # false for NaN too
        raise ValueError(f"{name} must be from 0 to {LONGEST_S:.0e} s, not {str(value)[:40]}")
    return float(value)


def buffered(stream: pa.NativeFile, size: int) -> io.BufferedReader:
    """A file as Python's own, which reads `size` bytes at once."""
    # It has what a raw stream has, but is not one by name.
    return io.BufferedReader(cast(io.RawIOBase, stream), size)


_MARKS = {  # the longer first: one begins like the other
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def iter_lines(location: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, of a UTF-8 file. ValueError naming the line that is not."""
    filesystem, path = uris.open_filesystem(location)
    # A binary reader's lines end at line feeds only: a text may contain U+2028 and its like.
    with filesystem.open_input_stream(path) as raw, buffered(raw, STREAM_BUFFER) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                _check_encoding(location, line)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{location}: line {number} is not UTF-8; convert it from the encoding that it "
                    "is in, often Windows-1252 (iconv -f windows-1252 -t utf-8)"
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def _check_encoding(location: str, first_line: bytes) -> None:
    """ValueError for a file in an encoding of wide characters, by its mark or its zero bytes."""
    encoding = next((name for mark, name in _MARKS.items() if first_line.startswith(mark)), None)
    if encoding is None and b"\0" in first_line:
        # Without a mark: Latin letters are zero bytes and their ASCII, in either order.
        encoding = "utf-16be" if first_line.startswith(b"\0") else "utf-16le"
    if encoding:
        raise ValueError(
            f"{location}: line 1 is not UTF-8 but {encoding.upper()}; convert it "
            f"(iconv -f {encoding} -t utf-8)"
        )
