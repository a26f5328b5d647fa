"""Paths and filesystem URIs, read and written alike.

Owns turning what a user typed into a pyarrow filesystem and a path on it. Every input and output
of the jobs goes through here, so that workers need not share a disk with the driver. A location is
a path or a URI; what stands behind `?` in a URI is options of its filesystem, kept in every
location made from it.
"""

import ctypes
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
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
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""How the names of files with a model's weights end."""
FILE = fs.FileType.File
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where there is no space."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that Git LFS puts in the place of a large one until it is fetched."""


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
    git-annex or DVC) has neither.
    """
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


def beside(location: str, path: str) -> str:
    """What a file means by a path: a URI or an absolute path itself, others from its folder on."""
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


def kind(location: str) -> fs.FileType:
    filesystem, path = open_filesystem(location)
    return filesystem.get_file_info(path).type


def exists(location: str) -> bool:
    return kind(location) != fs.FileType.NotFound


def is_empty(location: str) -> bool:
    """True when nothing is there, or a folder with nothing in it."""
    filesystem, path = open_filesystem(location)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.Directory:
        if isinstance(filesystem, fs.LocalFileSystem):
            return not os.listdir(path)
        return not filesystem.get_file_info(fs.FileSelector(path))
    return bool(info.type == fs.FileType.NotFound)


def delete_folder(location: str) -> None:
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def real(location: str) -> str:
    """What two locations of one file or folder have in common: a local path with links resolved,
    any other location as it is."""
    filesystem, path = open_filesystem(location)
    return os.path.realpath(path) if isinstance(filesystem, fs.LocalFileSystem) else location


def delete(location: str) -> None:
    """Delete a file or a folder; nothing happens where there is none."""
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).is_file:
        filesystem.delete_file(path)
    else:
        delete_folder(location)


def contains(folder: str, location: str) -> bool:
    """Whether a path or URI is a folder, or lies in it, by whatever links."""
    (outer_fs, _), (inner_fs, _) = open_filesystem(folder), open_filesystem(location)
    if not outer_fs.equals(inner_fs):
        return False
    return f"{real(location)}/".startswith(f"{real(folder).rstrip('/')}/")


class Entry(NamedTuple):
    """A file or folder as its filesystem lists it."""

    path: str
    type: fs.FileType


def entries(location: str, recursive: bool = False) -> list[Entry]:
    """What a folder holds, directly or at any depth; [] when it is missing.

    Nothing here can open a local name that is not UTF-8; such are skipped, and the log says so.
    """
    filesystem, path = open_filesystem(location)
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
            kind_of = kinds.Directory if item.is_dir() else kinds.File if item.is_file() else None
            found.append(Entry(item.path, kind_of or kinds.Unknown))
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
    """The hash of a file, read in pieces."""
    filesystem, path = open_filesystem(location)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
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
    filesystem, path = open_filesystem(location)
    with network_errors(location):
        try:
            return _read(filesystem, path)
        except FileNotFoundError:
            for form in ("NFC", "NFD"):
                other = unicodedata.normalize(form, path)
                if other != path and filesystem.get_file_info(other).type == fs.FileType.File:
                    return _read(filesystem, other)
            raise


def _read(filesystem: fs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(location: str, data: bytes) -> None:
    """Write a whole file. On a local disk it appears complete or not at all."""
    filesystem, path = open_filesystem(location)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if isinstance(filesystem, fs.LocalFileSystem):
        # Hidden, so that what a killed process leaves is no file of a dataset to any reader.
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


def copy_folder(source: str, target: str) -> None:
    """Copy a folder between any two filesystems, replacing what `target` held, as `replacing` does.

    Raises FileNotFoundError for a source that is not there, and ValueError for one that the
    replacing would delete; the target is then as it was.
    """
    source_fs, source_path = open_filesystem(source)
    target_fs, target_path = open_filesystem(target)
    if isinstance(target_fs, fs.LocalFileSystem):
        with replacing(target) as folder:
            fs.copy_files(source_path, str(folder), source_filesystem=source_fs)
        return
    if contains(target, source):
        raise ValueError(f"{source} cannot be copied to {target}, which holds it")
    source_fs.get_file_info(fs.FileSelector(source_path))  # before anything is deleted
    target_fs.create_dir(target_path, recursive=True)
    target_fs.delete_dir_contents(target_path)
    fs.copy_files(
        source_path, target_path, source_filesystem=source_fs, destination_filesystem=target_fs
    )


@contextmanager
def replacing(target: str) -> Iterator[Path]:
    """A new local folder to fill; it takes the place of `target` when the context ends well.

    On a disk it is made in the target's parent, hidden, and exchanged with the target: whoever
    reads, and whatever is killed, the target is the old folder whole or the new one whole. (Where
    the system cannot exchange two folders - not Linux, or NFS - there is a moment without either.)
    An object store cannot rename: there the old files are deleted before the new ones are written,
    so that a reader may miss a file, but never gets files of both.
    """
    filesystem, path = open_filesystem(target)
    parent = None
    if isinstance(filesystem, fs.LocalFileSystem):
        path = os.path.realpath(path)  # behind a link, which stays
        parent = os.path.dirname(path)
        os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".sheen-", suffix=".tmp", dir=parent, ignore_cleanup_errors=True
    ) as landing:
        folder = Path(landing) / "new"
        folder.mkdir()  # with the permissions of any new folder: those of `landing` are the user's
        yield folder
        if parent is None:
            copy_folder(str(folder), target)
        else:
            put_in_place(folder, path)


def put_in_place(folder: Path, target: str) -> None:
    """Rename a folder to `target` on the same disk; what was there is deleted, or left in `folder`.

    Flushed first, so that after a power cut too the name means whole files. Raises OSError.
    """
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if os.path.isdir(target) and _exchange(str(folder), target):
        return
    aside = folder.with_name(f"{folder.name}.old")
    if os.path.isdir(target):
        os.rename(target, aside)
    try:
        os.rename(folder, target)
    except OSError:
        if aside.is_dir():
            os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(first: str, second: str) -> bool:
    """Swap two paths in one step; False where the system or the filesystem cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    paths = os.fsencode(first), os.fsencode(second)
    return bool(renameat2(here, paths[0], here, paths[1], exchange) == 0)


@contextmanager
def local_folder(location: str, weights: bool = True) -> Iterator[Path]:
    """A folder as a local path: itself, or of one elsewhere a copy, deleted with the context.

    What is no URI is given as it is; it may be a hub id. Without `weights` a copy lacks the files
    of those: whoever reads a tokenizer downloads no model.
    """
    if not is_uri(location):
        yield Path(location).expanduser()
        return
    filesystem, path = open_filesystem(location)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="sheen-", ignore_cleanup_errors=True) as copy:
        if weights:
            fs.copy_files(path, copy, source_filesystem=filesystem)
        else:
            for info in filesystem.get_file_info(fs.FileSelector(path, recursive=True)):
                if info.is_file and not info.path.endswith(WEIGHTS):
                    target = Path(copy) / os.path.relpath(info.path, path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    fs.copy_files(info.path, str(target), source_filesystem=filesystem)
        yield Path(copy)
