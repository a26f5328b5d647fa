"""Locations: a path or a filesystem URI, resolved to a pyarrow filesystem and a path on it.

Owns joining, naming and comparing locations, and opening their filesystem: pyarrow's own where it
has one, else fsspec's. Every input and output of the jobs goes through here, so that workers need
not share a disk with the driver. The query of a URI holds options of its filesystem and is kept in
every location derived from it. Reads and writes no files.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
from pyarrow import fs

logger = logging.getLogger(__name__)

ESCAPED_SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
"""Schemes of pyarrow's own filesystems whose URIs write spaces and the like as `%20`."""
ARROW_SCHEMES = (*ESCAPED_SCHEMES, "hf")
"""Schemes that pyarrow opens; all others are fsspec's."""
STORE_SCHEMES = ("s3", "gs", "gcs")
"""Schemes with a bucket as their host: one client serves all its files."""
HTTP_SCHEMES = ("http", "https")


class HttpHandler(fs.FSSpecHandler):
    """Streams come in one answer, which a server without byte ranges gives too."""

    def open_input_stream(self, path: str) -> pa.PythonFile:
        other: Any = self.fs  # fsspec's, whatever the stubs say
        return pa.PythonFile(other.open(path, mode="rb", block_size=0), mode="r")


def is_uri(location: str) -> bool:
    return "://" in location


def scheme(location: str) -> str:
    """`s3` of `s3://bucket/x`; empty for a path."""
    return location.partition("://")[0] if is_uri(location) else ""


def absolute(location: str) -> str:
    """A URI unchanged; a path made absolute, because workers run in another directory.

    Links keep their names, but for those before a `..`: what a file is called and what lies beside
    it is the user's meaning, and a link's target (a blob of the Hugging Face cache, an object of
    git-annex or DVC) has neither. ValueError for an empty location, which would be the working
    directory.
    """
    if not location:
        raise ValueError(
            "an empty location (a variable of the shell that is not set?), expected a path or a URI"
        )
    if is_uri(location):
        return location
    path = Path(location).expanduser().absolute()
    if ".." in path.parts:
        after = path.parts[::-1].index("..")
        climbed, below = (
            path.parts[: len(path.parts) - after],
            path.parts[len(path.parts) - after :],
        )
        path = Path(*climbed).resolve().joinpath(*below)
    return str(path)


def split_options(location: str) -> tuple[str, str]:
    """A location without the options of its filesystem, and those, with their mark."""
    path, mark, options = location.partition("?") if is_uri(location) else (location, "", "")
    return path, mark + options


def join(location: str, *parts: str) -> str:
    path, options = split_options(location)
    return "/".join([path.rstrip("/"), *parts]) + options


def child(location: str, path: str) -> str:
    """A location below another; `path` is as filesystems list it, and escaped where URIs are."""
    return join(location, quote(path) if scheme(location) in ESCAPED_SCHEMES else path)


def name(location: str) -> str:
    """The last part of a location, as filesystems list it."""
    last = split_options(location)[0].rstrip("/").rpartition("/")[2]
    return unquote(last) if scheme(location) in ESCAPED_SCHEMES else last


def with_suffix(location: str, suffix: str) -> str:
    """The location next to another whose name has a suffix in addition."""
    path, options = split_options(location)
    return path.rstrip("/") + suffix + options


def sibling(location: str, path: str) -> str:
    """The location of a path in a file: itself if absolute or a URI, else from its folder."""
    if is_uri(path) or path.startswith("/"):
        return path
    above, options = split_options(location)
    return child((above.rpartition("/")[0] if "/" in above else ".") + options, path)


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path on it. ValueError names what is wrong.

    pyarrow's own filesystems where it has one, else fsspec's (https, memory, ...).
    """
    kind_of = scheme(location)
    try:
        if kind_of in STORE_SCHEMES:
            parts = urlsplit(location)
            path = f"{parts.netloc.rpartition('@')[2]}{unquote(parts.path)}".rstrip("/")
            return _open_store(parts._replace(path="").geturl()), path
        if kind_of in ARROW_SCHEMES or not kind_of:
            filesystem, path = fs.FileSystem.from_uri(absolute(location))
            return filesystem, path
        other, path = fsspec.url_to_fs(location)
        # The stubs take the handlers for abstract; they are not.
        handler: Any = HttpHandler if kind_of in HTTP_SCHEMES else fs.FSSpecHandler
        return fs.PyFileSystem(handler(other)), path
    except ImportError as error:
        raise ValueError(
            f"{location}: {kind_of}:// needs a package that is not installed; install it with pip "
            f"({error})"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{location}: not a path or URI that can be opened ({error})") from error


@lru_cache(maxsize=32)
def _open_store(bucket: str) -> fs.FileSystem:
    """A new client for each file would ask for the bucket's region and the credentials again."""
    return fs.FileSystem.from_uri(bucket)[0]


@contextmanager
def network_errors(location: str) -> Iterator[None]:
    """Turns what fsspec's filesystems raise into OSError: each raises its network library's own."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        if scheme(location) in ("", *ESCAPED_SCHEMES):
            raise
        raise OSError(f"{location}: {type(error).__name__}: {error}") from error


def real(location: str) -> str:
    """The same for all locations of one file or folder: a local path with links resolved,
    any other location as it is."""
    filesystem, path = open_filesystem(location)
    return os.path.realpath(path) if isinstance(filesystem, fs.LocalFileSystem) else location


def contains(folder: str, location: str) -> bool:
    """Whether a path or URI is a folder, or lies in it, by whatever links."""
    (outer_fs, _), (inner_fs, _) = open_filesystem(folder), open_filesystem(location)
    if not outer_fs.equals(inner_fs):
        return False
    return f"{real(location)}/".startswith(f"{real(folder).rstrip('/')}/")
