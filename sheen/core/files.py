"""Paths and filesystem URIs, read and written alike.

Owns turning what a user typed into a pyarrow filesystem and a path on it. Every input and output
of the jobs goes through here, so that workers need not share a disk with the driver.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from pyarrow import fs


def is_uri(location: str) -> bool:
    return "://" in location


def absolute(location: str) -> str:
    """A URI unchanged; a path made absolute, because workers run in another directory."""
    return location if is_uri(location) else str(Path(location).expanduser().resolve())


def join(location: str, *parts: str) -> str:
    return "/".join([location.rstrip("/"), *parts])


def open_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path or URI, and the path on it. ValueError names what is wrong."""
    try:
        filesystem, path = fs.FileSystem.from_uri(absolute(location))
    except (ValueError, OSError) as error:
        raise ValueError(f"{location}: not a path or URI that can be opened ({error})") from error
    return filesystem, path


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
        return not filesystem.get_file_info(fs.FileSelector(path))
    return bool(info.type == fs.FileType.NotFound)


def delete_folder(location: str) -> None:
    filesystem, path = open_filesystem(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def contains(folder: str, location: str) -> bool:
    """Whether a path or URI is a folder, or lies in it."""
    (outer_fs, outer), (inner_fs, inner) = open_filesystem(folder), open_filesystem(location)
    return outer_fs.equals(inner_fs) and f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def list_names(location: str) -> list[str]:
    """Names of everything directly in a folder."""
    filesystem, path = open_filesystem(location)
    return [info.base_name for info in filesystem.get_file_info(fs.FileSelector(path))]


def list_files(location: str, recursive: bool = False) -> list[str]:
    """Paths of the files in a folder, directly or at any depth; [] when the folder is missing."""
    filesystem, path = open_filesystem(location)
    selector = fs.FileSelector(path, allow_not_found=True, recursive=recursive)
    return [info.path for info in filesystem.get_file_info(selector) if info.is_file]


def sha256(location: str) -> str:
    """The hash of a file, read in pieces."""
    filesystem, path = open_filesystem(location)
    digest = hashlib.sha256()
    with filesystem.open_input_stream(path) as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def read_bytes(location: str) -> bytes:
    filesystem, path = open_filesystem(location)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(location: str, data: bytes) -> None:
    """Write a whole file. On a local disk it appears complete or not at all."""
    filesystem, path = open_filesystem(location)
    filesystem.create_dir(os.path.dirname(path), recursive=True)
    if isinstance(filesystem, fs.LocalFileSystem):
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            Path(temporary).write_bytes(data)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    else:
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)


def copy_folder(source: str, target: str, source_filesystem: fs.FileSystem | None = None) -> None:
    """Copy a folder between any two filesystems, replacing what `target` held.

    On a local disk the copy is made beside the target and renamed, so that a reader never sees
    half of it. With `source_filesystem`, `source` is a path on that filesystem.
    """
    if source_filesystem is None:
        source_fs, source_path = open_filesystem(source)
    else:
        source_fs, source_path = source_filesystem, source
    target_fs, target_path = open_filesystem(target)
    local = isinstance(target_fs, fs.LocalFileSystem)
    landing = f"{target_path}.{os.getpid()}.tmp" if local else target_path
    try:
        target_fs.create_dir(landing, recursive=True)
        fs.copy_files(
            source_path, landing, source_filesystem=source_fs, destination_filesystem=target_fs
        )
        if local:
            shutil.rmtree(target_path, ignore_errors=True)
            os.replace(landing, target_path)
    finally:
        if local:
            shutil.rmtree(landing, ignore_errors=True)


def local_folder(location: str) -> Path:
    """A folder as a local path: itself, or for a URI a copy in a fresh temporary folder."""
    if not is_uri(location):
        return Path(absolute(location))
    target = tempfile.mkdtemp(prefix="sheen-")
    copy_folder(location, target)
    return Path(target)
