"""The manifest: every input of a corpus, in whatever format, as one table of rows.

Owns the table and what holds across inputs: keys, unique ids (prefixed with their file where files
number rows alike), rows without text, and the note on unused keys. A fault of a whole file raises;
a fault of one row becomes a row with a reason, so that the report accounts for it. The formats are
`sheen.data.readers`'s. Reads no audio.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa

from sheen.data.readers.forms import LINES_SUFFIXES, InputFile, find_files, form_of_folder
from sheen.data.readers.ljspeech import METADATA_FILE
from sheen.data.schema import AUDIO_SUFFIXES, KEYS, ROW_SCHEMA, FileRows, iter_lines
from sheen.storage import files, uris

__all__ = [
    "AUDIO_SUFFIXES",
    "MANIFEST_SCHEMA",
    "METADATA_FILE",
    "plain_rows",
    "read_lines",
    "read_manifest",
]

logger = logging.getLogger(__name__)

MANIFEST_SCHEMA = pa.schema([pa.field("key", pa.int64()), *ROW_SCHEMA])
"""ROW_SCHEMA, which says what each column means, after the position of the row over all inputs,
from 0."""

MENTIONED = 12
"""Unused keys that are named."""
READERS = 16
"""Files read at a time: over a network most of the time is spent waiting."""
UNREAD = ("malformed row", "unreadable", "bad codes")
"""Reasons of rows that could not be read; an input of nothing else is an error."""
FAULTY = ("malformed row", "duplicate id")
"""Reasons of rows that are wrong in the input itself: such a row may have the id of another."""


def read_manifest(
    location: str | Sequence[str], limit: int | None = None, form: str | None = None
) -> pa.Table:
    """The rows of an input, in its own order, with MANIFEST_SCHEMA. Raises ValueError.

    `location` is one or several paths, URIs or globs (see `files.glob`); `form` is one of
    `sheen.data.readers.forms.FORMS`, where what they hold does not show it. `limit`
    keeps the first rows, faulty ones included. A row without an id of its own is called after its
    line in the only file, or after its place among all rows. Where an id stands in several files,
    theirs become FILE/ID.
    """
    locations = [location] if isinstance(location, str) else list(location)
    named = ", ".join(locations)
    found: list[FileRows] = []
    with ThreadPoolExecutor(READERS) as pool:
        inputs = _find(locations, form, pool)
        # With a limit only so many files are read as it takes.
        step = READERS if limit is not None else max(1, len(inputs))
        for first in range(0, len(inputs), step):
            found += pool.map(lambda each: _read(each, limit), inputs[first : first + step])
            if limit is not None and sum(_count(rows) for rows in found) >= limit:
                break
    _mention_unused(named, found)
    prefixes = _prefixes(inputs, found)
    checks = _Checks(called_by_line=len(inputs) == 1)
    batches: list[pa.RecordBatch] = []
    for rows, prefix in zip(found, prefixes, strict=True):
        for batch in rows.batches:
            left = len(batch) if limit is None else limit - checks.count
            batches.append(checks.apply(batch.slice(0, left), prefix))
    if not checks.count:
        raise ValueError(f"input {named}: it holds no rows")
    if not checks.readable:
        raise ValueError(f"input {named}: no row could be read ({checks.first_detail})")
    return pa.Table.from_batches(batches, schema=MANIFEST_SCHEMA)


def check_outside(flag: str, output: str, locations: Sequence[str]) -> None:
    """Raise ValueError if what a job writes to `output` would replace an input, or be read as one
    in the next run: it lies in a folder that is read as a whole. An LJSpeech folder is not."""
    for location in locations:
        for match in map(uris.absolute, files.glob(location)):
            if uris.contains(match, output) and form_of_folder(match) is None:
                raise ValueError(
                    f"{flag} {output} is in --input {location}, where the next run would take it "
                    "for rows of the input; give a place outside it"
                )


def _count(rows: FileRows) -> int:
    return sum(len(batch) for batch in rows.batches)


def _mention_unused(named: str, found: Iterable[FileRows]) -> None:
    if unused := sorted({key for rows in found for key in rows.unused}):
        more = f" and {len(unused) - MENTIONED} more" if len(unused) > MENTIONED else ""
        known = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in KEYS.items())
        logger.info(
            "input %s: not used: %s%s (used are %s)",
            named, ", ".join(unused[:MENTIONED]), more, known,
        )  # fmt: skip


def _prefixes(inputs: Sequence[InputFile], found: Sequence[FileRows]) -> list[str]:
    """For each file the prefix of its ids: none, or, where another file has one of its ids too, the
    file's path below the folder that holds all."""
    holder: dict[str, int] = {}
    sharing: set[int] = set()
    example = ""
    for place, rows in enumerate(found):
        for batch in rows.batches:
            for name in batch.column("id").to_pylist():
                if name is not None and (other := holder.setdefault(name, place)) != place:
                    sharing |= {place, other}
                    example = example or name
    if not sharing:
        return [""] * len(found)
    parts = [uris.split_options(each.location)[0].split("/") for each in inputs]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in parts}) == 1:
        depth += 1
    names = ["/".join(path[depth:]) for path in parts]
    bare = [
        name.removesuffix(each.form.suffix or "") for name, each in zip(names, inputs, strict=True)
    ]
    names = bare if len(set(bare)) == len(bare) else names
    escaped = [uris.scheme(each.location) in uris.ESCAPED_SCHEMES for each in inputs]
    names = [unquote(name) if quoted else name for name, quoted in zip(names, escaped, strict=True)]
    logger.info(
        "%d files have ids that are in other files too: these become FILE/ID, as in %s/%s",
        len(sharing), names[holder[example]], example,
    )  # fmt: skip
    return [f"{names[place]}/" if place in sharing else "" for place in range(len(found))]


def plain_rows(location: str) -> list[dict[str, Any]]:
    """The rows of an input whose recordings are whole files each, for readers that need such.

    Raises ValueError as `read_manifest` does, and naming the first row that is something else.
    """
    rows: list[dict[str, Any]] = read_manifest(location).to_pylist()
    parts = ("container", "start", "end", "channel", "snac_codes")
    for row in rows:
        if any(row[name] is not None for name in parts):
            raise ValueError(
                f"{location}, {row['source']}: it is not a recording in a file of its own; give an "
                "LJSpeech folder or a .jsonl manifest without start and end"
            )
    return rows


def read_lines(path: str) -> list[str]:
    """The lines of a UTF-8 file. ValueError naming the line that is not."""
    return [line for _, line in iter_lines(path)]


def _find(locations: list[str], form: str | None, pool: ThreadPoolExecutor) -> list[InputFile]:
    paths: list[str] = []
    for location in locations:
        matches = files.glob(location)
        if not matches:
            raise ValueError(f"input {location}: no file or folder matches")
        paths += [uris.absolute(match) for match in matches]

    def find(path: str) -> list[InputFile]:
        try:
            with uris.network_errors(path):
                return find_files(path, form)
        except OSError as error:
            raise ValueError(f"input {path}: {error}") from error

    inputs = [each for found in pool.map(find, paths) for each in found]
    seen: set[str] = set()
    for each in inputs:
        if (where := uris.real(each.location)) in seen:
            raise ValueError(f"input {each.location}: named twice; give each file once")
        seen.add(where)
    return inputs


def _read(each: InputFile, limit: int | None) -> FileRows:
    try:
        with uris.network_errors(each.location):
            return each.form.read(each.location, limit)
    except (OSError, ValueError) as error:
        # A network library's errors do not name the file; those of the readers do.
        if isinstance(error, ValueError) and each.location in str(error):
            raise
        raise ValueError(f"input {each.location}: {error}") from error


class _Checks:
    """Gives rows their keys and names, and reasons for what only shows over all rows."""

    def __init__(self, called_by_line: bool) -> None:
        self.count = 0
        self.readable = False
        self.first_detail: str | None = None
        self._called_by_line = called_by_line
        self._seen: set[str] = set()
        self._recordings: set[tuple[Any, ...]] = set()

    def apply(self, batch: pa.RecordBatch, prefix: str) -> pa.RecordBatch:
        """A batch of ROW_SCHEMA -> MANIFEST_SCHEMA, with something before the ids."""
        names = ("id", "text", "source", "reason", "detail")
        whose = ("id", "audio", "place", "start", "end", "channel", "text")
        rows = batch.select(whose).to_pylist() if prefix else []
        columns: dict[str, list[Any]] = {name: batch.column(name).to_pylist() for name in names}
        keys = np.arange(self.count, self.count + len(batch))
        for place in range(len(batch)):
            name, text, source, reason, detail = (column[place] for column in columns.values())
            if name is None:
                name = columns["id"][place] = self._name(source, self.count + place)
            elif prefix:
                name = columns["id"][place] = prefix + name
                # Two lists may name one recording alike, and then it is one.
                row = rows[place]
                told = whose if row["audio"] is None else whose[:-1]
                recording = tuple(str(row[key]) for key in told)
                if reason is None and recording in self._recordings:
                    reason = "duplicate id"
                    detail = f"an earlier row has the same recording and id {row['id']!r}"
                elif reason is None:
                    self._recordings.add(recording)
            if reason is None and name in self._seen:
                reason, detail = "duplicate id", f"an earlier row has the id {name!r}"
            elif reason is None and not text.strip():
                reason, detail = "no text", "the text is empty"
            if reason is None:
                self._seen.add(name)
            self.readable = self.readable or reason not in UNREAD
            self.first_detail = self.first_detail or detail
            columns["reason"][place], columns["detail"][place] = reason, detail
        self.count += len(batch)
        checked = {"key": pa.array(keys)} | {
            name: pa.array(columns[name], pa.string()) for name in ("id", "reason", "detail")
        }
        arrays = [
            checked[field.name] if field.name in checked else batch.column(field.name)
            for field in MANIFEST_SCHEMA
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=MANIFEST_SCHEMA)

    def _name(self, source: str, key: int) -> str:
        file, _, line = source.rpartition(":")
        if self._called_by_line and file.lower().endswith(LINES_SUFFIXES):
            return f"line-{line}"
        return f"row-{key + 1}"
