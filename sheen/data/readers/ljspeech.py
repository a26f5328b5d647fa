"""An LJSpeech folder: metadata.csv with lines `id|text`, and wavs/.

Owns what the columns mean and which recording an id names. Refuses files whose extra columns look
like a speaker or seconds, which other tools write where LJSpeech has the spoken text.
"""

import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from sheen.data.schema import AUDIO_SUFFIXES, FileRows, RowBuilder, iter_lines
from sheen.storage import files, uris

METADATA_FILE = "metadata.csv"
FOLDER = "wavs"
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".3gp", ".avi")
"""Here a file is a recording because an id names it, whatever else it may hold."""
KNOWN_SUFFIXES = (*AUDIO_SUFFIXES, *VIDEO_SUFFIXES)
USUAL_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".webm")
COLUMNS = "id|text, id|text|spoken text or id|text|spoken text|speaker"

Line = tuple[int, list[str]]
"""A line's number and its fields."""


def read(folder: str, limit: int | None) -> FileRows:
    """`id|text`, `id|text|normalized text` or `id|text|normalized text|speaker`, no header.

    Raises ValueError for a faulty file as a whole.
    """
    path = uris.join(folder, METADATA_FILE)
    if not files.exists(path):
        raise ValueError(
            f"{path} is missing: an LJSpeech folder holds metadata.csv (id|text lines) and wavs/"
        )
    written = [line for line in iter_lines(path) if line[1].strip()]
    _check_delimiter(path, written)
    lines = [(number, [field.strip() for field in line.split("|")]) for number, line in written]
    odd = _odd_third_fields(path, lines)
    _check_fourth_column(path, lines)
    recordings = _Recordings(folder)
    rows = RowBuilder(limit)
    for number, fields in lines:
        if rows.full:
            break
        rows.add(_row(number, fields, recordings) | odd.get(number, {}))
    return rows.finish()


def _check_delimiter(path: str, lines: list[tuple[int, str]]) -> None:
    if not lines:
        raise ValueError(f"{path} is empty: expected id|text lines")
    if not any("|" in line for _, line in lines):
        used = next(
            (
                name
                for char, name in {"\t": "a tab", ",": "a comma", ";": "a semicolon"}.items()
                if char in lines[0][1]
            ),
            "something else",
        )
        raise ValueError(
            f"{path}: wrong delimiter: line {lines[0][0]} is {lines[0][1][:60]!r}; fields must be "
            f"separated by '|', this file seems to use {used}"
        )


def _odd_third_fields(path: str, lines: list[Line]) -> dict[int, dict[str, Any]]:
    """Rejected lines, by number: those of three fields whose third is not the spoken second.

    Where most lines are such, or many texts share few values, the column holds something else:
    ValueError. With four fields nothing is guessed.
    """
    three = [
        (number, fields[1], fields[2]) for number, fields in lines if len(fields) == 3 and fields[2]
    ]
    odd = {number: (text, third) for number, text, third in three if not _same(text, third)}
    texts, thirds = {text for _, text, _ in three}, {third for *_, third in three}
    if three and (len(odd) * 2 > len(three) or len(thirds) * 4 <= len(texts)):
        number, text, third = next(row for row in three if not odd or row[0] in odd)
        raise ValueError(
            f"{path}: line {number}: the third field must be the text as it is spoken, and "
            f"{third[:40]!r} is not {text[:60]!r}. If it is the speaker, it belongs in the fourth "
            "field: id|text||speaker. If '|' is part of the text, write the text without it. If it "
            "is what is spoken, end the lines with an empty fourth field: id|text|spoken text|"
        )
    return {
        number: {
            "text": "",
            "reason": "malformed row",
            "detail": f"line {number}: the third field must be the text as it is spoken, and "
            f"{third[:40]!r} is not {text[:60]!r}; is '|' part of the text?",
        }
        for number, (text, third) in odd.items()
    }


def _same(text: str, spoken: str) -> bool:
    """Whether one may be the other as it is spoken: it has half of the words, or nearly all
    letters. Numbers and signs may become anything."""
    words = {word for word in re.findall(r"\w+", text.lower()) if word.isalpha()}
    kept = words & set(re.findall(r"\w+", spoken.lower()))
    letters, left = (
        Counter(char for char in whole.lower() if char.isalpha()) for whole in (text, spoken)
    )
    return len(kept) * 2 >= len(words) or (letters & left).total() * 5 >= letters.total() * 4


def _check_fourth_column(path: str, lines: list[Line]) -> None:
    """Some corpora have each recording's length there."""
    fourth = [(number, fields[3]) for number, fields in lines if len(fields) == 4 and fields[3]]
    seconds = [row for row in fourth if re.fullmatch(r"\d+\.\d+", row[1])]
    if len(seconds) * 2 > len(fourth):
        number, value = seconds[0]
        raise ValueError(
            f"{path}: line {number}: the fourth field must be the speaker, and {value!r} seems to "
            f"be a length in seconds; expected {COLUMNS}"
        )


class _Recordings:
    """The files below wavs/, by what an id may say of them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        paths = sorted(files.paths_below(uris.join(folder, FOLDER)))
        self._audio = [path for path in paths if path.lower().endswith(KNOWN_SUFFIXES)]
        self._other = {str(PurePosixPath(path).with_suffix("")): path for path in paths}
        # Of files that differ by their suffix alone, one of the usual ones: the last counts.
        ranked = sorted(self._audio, key=lambda path: path.lower().endswith(USUAL_SUFFIXES))
        self._named: dict[str, str] = {}
        for called in (_stem, str):
            # An id in the same normal form of Unicode means that file before its double.
            self._named |= {files.composed(called(path)): path for path in ranked}
            self._named |= {called(path): path for path in ranked}

    def find(self, name: str) -> str | None:
        """The location of an id's recording. Some corpora write the file's suffix with the id, or
        the folder."""
        inner = name.removeprefix("./").removeprefix(f"{FOLDER}/")
        for meant in (name, inner, _stem(inner)):
            if found := self._named.get(meant) or self._named.get(files.composed(meant)):
                return uris.child(self._folder, f"{FOLDER}/{found}")
        return None

    def missing(self, name: str) -> tuple[str, str]:
        """The expected location of an id's recording without suffix, and why it is missing."""
        inner = _stem(name.removeprefix("./").removeprefix(f"{FOLDER}/"))
        told = f"no recording {name!r} in {uris.join(self._folder, FOLDER)}"
        if not self._audio:
            told += ": there are no audio files in it"
        elif other := self._other.get(inner):
            told += f": {other} is there, whose suffix is not one of audio"
        else:
            told += ", with or without the suffix of an audio file"
        return uris.child(self._folder, f"{FOLDER}/{inner}.wav"), told


def _stem(path: str) -> str:
    """A path without the suffix of a recording."""
    suffix = PurePosixPath(path).suffix
    return path.removesuffix(suffix) if suffix.lower() in KNOWN_SUFFIXES else path


def _row(number: int, fields: list[str], recordings: _Recordings) -> dict[str, Any]:
    row: dict[str, Any] = {"id": fields[0], "source": f"{METADATA_FILE}:{number}"}
    if not 2 <= len(fields) <= 4 or not fields[0]:
        detail = (
            f"line {number} has {len(fields)} fields separated by '|', expected "
            "id|text[|normalized text[|speaker]]"
        )
        return row | {"text": "", "reason": "malformed row", "detail": detail}
    row["text"] = fields[2] if len(fields) > 2 and fields[2] else fields[1]
    row["speaker"] = fields[3] or None if len(fields) == 4 else None
    if found := recordings.find(fields[0]):
        return row | {"audio": found}
    # A location all the same: with the recording in its place later, it is the same row.
    location, detail = recordings.missing(fields[0])
    return row | {"audio": location, "reason": "missing", "detail": detail}
