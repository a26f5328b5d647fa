"""The recordings of an input: files, folders, globs and URIs, as a list of sources.

Owns which files of a folder are recordings, the prefix of their rows' ids, and the count of skipped
files. Opens none of them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyarrow import fs

from sheen.data.schema import AUDIO_SUFFIXES
from sheen.storage import files, uris

SUFFIXES = (
    *AUDIO_SUFFIXES,
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts",
    ".ogv", ".wmv",
)  # fmt: skip
"""Suffixes of recordings in a folder. A file that is named directly may have any suffix."""


@dataclass(frozen=True)
class Source:
    """A file with a recording. `name` is unique among all sources."""

    location: str
    name: str


@dataclass(frozen=True)
class Sources:
    """All sources, in the order of the input, and the other files in its folders."""

    sources: list[Source]
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped files by suffix."""


def find_sources(locations: Sequence[str]) -> Sources:
    """The recordings at paths, URIs and globs. Raises ValueError for an input without any."""
    found: list[str] = []
    skipped: Counter[str] = Counter()
    for location in locations:
        matches = files.glob(location)
        before = len(found)
        for match in map(uris.absolute, matches):
            kind = files.kind(match)
            if kind == fs.FileType.NotFound:
                raise ValueError(f"--input {match}: no such file or folder")
            if kind != fs.FileType.Directory:
                found.append(match)
                continue
            for path in files.list_below(match):
                name = uris.name(path).lower()
                if name.endswith(SUFFIXES):
                    found.append(path)
                else:
                    skipped[suffix_of(path)] += 1
        if len(found) == before:
            held = ", ".join(f"{count} {suffix}" for suffix, count in skipped.most_common(3))
            raise ValueError(
                f"--input {location}: expected a recording, or a folder or glob of files with one "
                f"of the suffixes {' '.join(SUFFIXES)}; found {held or 'no files'}"
            )
    seen: set[str] = set()
    for location in found:
        if (where := uris.real(location)) in seen:
            raise ValueError(f"--input {location}: it is named twice; name each recording once")
        seen.add(where)
    return Sources([Source(*pair) for pair in zip(found, _names(found), strict=True)], skipped)


def suffix_of(location: str) -> str:
    """The suffix in lower case; the whole name of a file without one."""
    name = uris.name(location).lower()
    return f".{name.rpartition('.')[2]}" if "." in name else name


def _names(locations: Sequence[str]) -> list[str]:
    """File names without suffix; if two are equal, paths relative to the common folder, and if
    those differ only in their suffix, with it."""
    parts = [uris.split_options(location)[0].split("/") for location in locations]
    depth = 0
    while len({tuple(path[: depth + 1]) for path in parts}) == 1 and depth + 1 < len(parts[0]):
        depth += 1
    last = [uris.name(location) for location in locations]
    whole = ["/".join([*path[depth:-1], name]) for path, name in zip(parts, last, strict=True)]
    for names in ([_bare(name) for name in last], [_bare(name) for name in whole]):
        if len(set(names)) == len(names):
            return names
    return whole


def _bare(name: str) -> str:
    stem, dot, _ = name.rpartition(".")
    return stem if dot and stem else name
