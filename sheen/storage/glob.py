"""Glob patterns over paths and URIs, and the files below a folder.

Owns what a pattern matches. Hidden files and folders (`.name`) are skipped unless the pattern asks
for them.
"""

import unicodedata
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from urllib.parse import unquote

from pyarrow import fs

from sheen.storage import files, uris


def list_below(location: str) -> list[str]:
    """Locations of the files at any depth of a folder, sorted; hidden ones (`.name`) skipped."""
    return sorted(uris.child(location, path) for path in paths_below(location))


def paths_below(location: str) -> list[str]:
    """The same, unsorted, as paths from that folder on, as its filesystem writes them."""
    _, root = uris.open_filesystem(location)
    paths = (_relative(path, root) for path in files.list_files(location, recursive=True))
    return [path for path in paths if _shown(path)]


def _has_wildcard(part: str) -> bool:
    return any(mark in part for mark in "*?[")


def glob(location: str) -> list[str]:
    """Locations of the files and folders that a pattern matches, sorted; [] when there are none.

    `*`, `?` and `[...]` match within a name, `**` any folders; a name that begins with a dot only
    matches a pattern that does. In a URI `?` begins options. A location without wildcards, and a
    path that exists as it is written, is returned as it is.
    """
    path, options = uris.split_options(location)
    parts = path.split("/")
    first = next((place for place, part in enumerate(parts) if _has_wildcard(part)), None)
    if first is None or (not uris.is_uri(location) and files.exists(location)):
        return [location]
    base = "/".join(parts[:first]) or ("/" if path.startswith("/") else ".")
    found = {base + options}
    wanted = [part for part in parts[first:] if part]
    for place, part in enumerate(wanted, start=1):
        last = place == len(wanted)
        found = {match for folder in found for match in _matches(folder, part, last)}
    return sorted(found)


def _matches(folder: str, part: str, last: bool) -> Iterator[str]:
    """What one part of a pattern matches in a folder; before the last, only folders."""
    _, root = uris.open_filesystem(folder)
    anywhere = part == "**"
    if anywhere and not last:
        yield folder
    pattern = unquote(part) if uris.scheme(folder) in uris.ESCAPED_SCHEMES else part
    for entry in files.entries(folder, recursive=anywhere):
        path = _relative(entry.path, root)
        if anywhere:
            matched = (entry.type == fs.FileType.File) == last and _shown(path)
        else:
            kind_fits = last or entry.type == fs.FileType.Directory
            dots_fit = _shown(path) or pattern.startswith(".")
            matched = kind_fits and dots_fit and fnmatchcase(_composed(path), _composed(pattern))
        if matched:
            yield uris.child(folder, path)


def _composed(name: str) -> str:
    """macOS writes names decomposed, users type them composed."""
    return unicodedata.normalize("NFC", name)


def _relative(path: str, root: str) -> str:
    # Over HTTP a path is its whole URL, and the root's has its options.
    return str(PurePosixPath(path).relative_to(uris.split_options(root)[0]))


def _shown(path: str) -> bool:
    return "/." not in f"/{path}"
