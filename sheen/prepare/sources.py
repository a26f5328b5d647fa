"""The recordings of an input: files, folders, globs and URIs, as a list of sources.

Owns which files of a folder are recordings, the name that the rows of each begin with, and the
count of what is left alone. Opens none of them.
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
"""Of files in a folder that are taken for recordings. One that is named is taken whatever it is
called."""


@dataclass(frozen=True)
class Source:
    """A file with a recording. `name` is its own among all sources."""

    location: str
    name: str


@dataclass(frozen=True)
class Sources:
    """All sources, in the order of the input, and the files of its folders that are none."""

    sources: list[Source]
    skipped: Counter[str] = field(default_factory=Counter)
    """Files by suffix."""


def find_sources(locations: Sequence[str]) -> Sources:
    """The recordings at paths, URIs and globs. Raises ValueError for what holds none."""
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
                f"--input {location}: expected recordings, files with one of the suffixes "
                f"{' '.join(SUFFIXES)} or a folder or glob of such; it holds {held or 'nothing'}"
            )
    seen: set[str] = set()
    for location in found:
        if (where := uris.real(location)) in seen:
            raise ValueError(f"--input {location}: named twice; its rows would be doubled")
        seen.add(where)
    return Sources([Source(*pair) for pair in zip(found, _names(found), strict=True)], skipped)


def suffix_of(location: str) -> str:
    """In lower case; the whole name of a file without one."""
    name = uris.name(location).lower()
    return f".{name.rpartition('.')[2]}" if "." in name else name


def _names(locations: Sequence[str]) -> list[str]:
    """The file names without suffix; where two are alike, paths from the folder on that holds all,
    and where those differ by their suffix alone, with it."""
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
