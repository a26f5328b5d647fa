"""Files at a location: list, find by a pattern, read, hash, delete, and write atomically.

Owns what a pattern matches: hidden files and folders (`.name`) are skipped unless it asks for them.
Refuses Git LFS pointers, and turns network libraries' exceptions into OSError. Folders as a whole
are `sheen.storage.folders`'s.
"""

import errno
import hashlib
import logging
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from sheen.storage import uris

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")
FILE = fs.FileType.File
READERS = 16
"""Threads that read ahead."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""First bytes of the pointer that Git LFS leaves in the place of a file until it is fetched."""


def kind(location: str) -> fs.FileType:
    filesystem, path = uris.open_filesystem(location)
    return filesystem.get_file_info(path).type


def exists(location: str) -> bool:
    return kind(location) != fs.FileType.NotFound


def is_empty(location: str) -> bool:
    """True when nothing is there, or a folder with nothing in it."""
    filesystem, path = uris.open_filesystem(location)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.Directory:
        if isinstance(filesystem, fs.LocalFileSystem):
            return not os.listdir(path)
        return not filesystem.get_file_info(fs.FileSelector(path))
    return bool(info.type == fs.FileType.NotFound)


def delete(location: str) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    filesystem, path = uris.open_filesystem(location)
    kind_of = filesystem.get_file_info(path).type
    if kind_of == fs.FileType.File:
        filesystem.delete_file(path)
    elif kind_of == fs.FileType.Directory:
        filesystem.delete_dir(path)


class Entry(NamedTuple):
    """A file or folder as its filesystem lists it."""

    path: str
    type: fs.FileType


def entries(location: str, recursive: bool = False) -> list[Entry]:
    """The entries of a folder, directly or at any depth; [] when it is missing.

    A link to what is not there, such as one of git-annex to a file that was not fetched, is a file:
    reading it says so, and a job counts it. Nothing here can open a local name that is not UTF-8;
    such are skipped, and the log says so.
    """
    filesystem, path = uris.open_filesystem(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
        return [Entry(info.path, info.type) for info in filesystem.get_file_info(selector)]
    found: list[Entry] = []
    skipped: list[bytes] = []
    try:
        _list_local(path, recursive, (os.path.realpath(path),), found, skipped)
    except FileNotFoundError:
        return []
    if skipped:
        logger.warning(
            "%s: skipped %d files or folders whose names are not UTF-8, the first is %r",
            location,
            len(skipped),
            skipped[0],
        )
    return found


def _list_local(
    folder: str, recursive: bool, above: tuple[str, ...], found: list[Entry], skipped: list[bytes]
) -> None:
    """`above`: real paths of the folders on the way, which a link may lead back to."""
    with os.scandir(folder) as listing:
        for item in listing:
            try:
                item.name.encode()
            except UnicodeEncodeError:
                skipped.append(os.fsencode(item.name))
                continue
            kinds = fs.FileType
            if item.is_symlink() and not os.path.exists(item.path):
                kind_of = kinds.File
            elif item.is_dir():
                kind_of = kinds.Directory
            else:
                kind_of = kinds.File if item.is_file() else kinds.Unknown
            found.append(Entry(item.path, kind_of))
            if recursive and kind_of == kinds.Directory:
                inner = os.path.realpath(item.path)
                if inner not in above:
                    _list_local(item.path, recursive, (*above, inner), found, skipped)


def list_names(location: str) -> list[str]:
    """Names of everything directly in a folder."""
    return [entry.path.rpartition("/")[2] for entry in entries(location)]


def list_files(location: str, recursive: bool = False) -> list[str]:
    """Paths of the files in a folder, directly or at any depth; [] when the folder is missing."""
    listed = entries(location, recursive)
    return [entry.path for entry in listed if entry.type == fs.FileType.File]


def sha256(location: str) -> str:
    """The hash of a file, read in blocks."""
    filesystem, path = uris.open_filesystem(location)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def refuse_pointer(path: Path) -> None:
    """Raise ValueError for a file that stands for one which Git LFS has yet to fetch."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(
                f"{path} is a Git LFS pointer and not the file itself: run `git lfs pull` where it "
                "was cloned, or download the file"
            )


def read_bytes(location: str) -> bytes:
    """A whole file. Raises FileNotFoundError, and OSError for what a network does.

    A name may be written in either normal form of Unicode: macOS writes file names in the other one
    than most texts, and both look the same.
    """

    def read(filesystem: fs.FileSystem, path: str) -> bytes:
        with filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())

    return _in_either_form(location, read)


def open_file(location: str) -> pa.NativeFile:
    """A file to read anywhere in it; found as `read_bytes` does."""
    return _in_either_form(location, lambda filesystem, path: filesystem.open_input_file(path))


def _in_either_form(location: str, use: Callable[[fs.FileSystem, str], Result]) -> Result:
    filesystem, path = uris.open_filesystem(location)
    with uris.network_errors(location):
        try:
            return use(filesystem, path)
        except FileNotFoundError:
            for form in ("NFC", "NFD"):
                other = unicodedata.normalize(form, path)
                if other != path and filesystem.get_file_info(other).type == fs.FileType.File:
                    return use(filesystem, other)
            raise


def write_bytes(location: str, data: bytes) -> None:
    """Write a whole file. On a local disk it appears complete or not at all."""
    filesystem, path = uris.open_filesystem(location)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if isinstance(filesystem, fs.LocalFileSystem):
        # Hidden, so that no reader takes the rest of a killed process for a file of the dataset.
        temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}")
        try:
            Path(temporary).write_bytes(data)
            os.replace(temporary, path)
        except OSError as error:
            # What a full disk raises names no file, or the temporary one.
            raise OSError(error.errno, error.strerror, path) from error
        finally:
            Path(temporary).unlink(missing_ok=True)
    else:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)


def map_ahead(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """`function` of each item, in order, computed in READERS threads a few items ahead.

    For many small reads: over a network most of their time is spent waiting.
    """
    with ThreadPoolExecutor(READERS) as pool:
        running = deque(pool.submit(function, item) for item in items[: 2 * READERS])
        for item in items[2 * READERS :]:
            yield running.popleft().result()
            running.append(pool.submit(function, item))
        while running:
            yield running.popleft().result()


def list_below(location: str) -> list[str]:
    """Locations of the files at any depth of a folder, sorted; hidden ones (`.name`) skipped."""
    return sorted(uris.child(location, path) for path in paths_below(location))


def paths_below(location: str) -> list[str]:
    """The same, unsorted, as paths from that folder on, as its filesystem writes them."""
    _, root = uris.open_filesystem(location)
    paths = (_relative(path, root) for path in list_files(location, recursive=True))
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
    if first is None or (not uris.is_uri(location) and exists(location)):
        return [location]
    base = "/".join(parts[:first]) or ("/" if path.startswith("/") else ".")
    found = {base + options}
    wanted = [part for part in parts[first:] if part]
    for place, part in enumerate(wanted, start=1):
        last = place == len(wanted)
        found = {match for folder in found for match in _matches(folder, part, last)}
    return sorted(found)


def _matches(folder: str, part: str, last: bool) -> Iterator[str]:
    """The matches of one part of a pattern in a folder; before the last part, only folders."""
    _, root = uris.open_filesystem(folder)
    anywhere = part == "**"
    if anywhere and not last:
        yield folder
    pattern = unquote(part) if uris.scheme(folder) in uris.ESCAPED_SCHEMES else part
    for entry in entries(folder, recursive=anywhere):
        path = _relative(entry.path, root)
        if anywhere:
            matched = (entry.type == fs.FileType.File) == last and _shown(path)
        else:
            kind_fits = last or entry.type == fs.FileType.Directory
            dots_fit = _shown(path) or pattern.startswith(".")
            matched = kind_fits and dots_fit and fnmatchcase(composed(path), composed(pattern))
        if matched:
            yield uris.child(folder, path)


def composed(name: str) -> str:
    """A name for comparing: macOS writes file names decomposed, users and texts have them composed,
    and both look the same."""
    return unicodedata.normalize("NFC", name)


def _relative(path: str, root: str) -> str:
    # Over HTTP a path is its whole URL, and the root's has its options.
    return str(PurePosixPath(path).relative_to(uris.split_options(root)[0]))


def _shown(path: str) -> bool:
    return "/." not in f"/{path}"
