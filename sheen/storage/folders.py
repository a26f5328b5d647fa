"""Folders at a location: copy, replace atomically, fetch as a local path; and their records.

Owns how a new folder takes the place of an old one, so that readers find one or the other, whole.

A checkpoint and a dataset carry a JSON record, `sheen.json` or `dataset.json`: owns the check of
its format version and the words of a refusal: file, key, value and what is known. The keys belong
to the record's own module, as a pydantic model that forbids others.
"""

import ctypes
import json
import logging
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pyarrow import fs
from pydantic import BaseModel, ValidationError

from sheen.storage import files, uris
from sheen.storage.uris import contains, is_uri, open_filesystem

logger = logging.getLogger(__name__)
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
"""Suffixes of files with a model's weights."""


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

    Anything but a URI is returned as it is; it may be a hub id. Without `weights` a copy lacks
    their files: reading a tokenizer downloads no model.
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


Record = TypeVar("Record", bound=BaseModel)
VERSION_KEY = "format_version"


def read_record(location: str, kind: type[Record]) -> Record:
    """The record in a file, path or URI. Raises ValueError."""
    data = load_record(location)
    found, version = data.get(VERSION_KEY), kind.model_fields[VERSION_KEY].default
    if found != version:
        advice = "use the version of Sheen that wrote it, or a later one"
        if found in range(1, version):
            path, options = uris.split_options(location)
            folder = shlex.quote(path.rpartition("/")[0] + options)
            advice = f"run `sheen convert {folder}` once to bring it up to date"
        raise ValueError(
            f"{location}: {VERSION_KEY} is {found!r}, this Sheen knows {version}; {advice}"
        )
    return parse_record(location, kind, data)


def load_record(location: str) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file."""
    try:
        data = json.loads(files.read_bytes(location))
    except ValueError as error:
        raise ValueError(f"{location}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{location}: not a JSON object")
    return data


def parse_record(location: str, kind: type[Record], data: Mapping[str, Any]) -> Record:
    """A record of the current format. Raises ValueError naming every key that is wrong."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(_words(problem) for problem in error.errors(include_url=False))
        raise ValueError(f"{location}: {problems}") from error


def dump_record(record: BaseModel) -> bytes:
    """As it is written: optional keys without a value are omitted."""
    return record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def _words(problem: Any) -> str:
    key = ".".join(map(str, problem["loc"]))
    value = repr(problem["input"])[:100]
    context = problem.get("ctx", {})
    match problem["type"]:
        case "literal_error":
            return f"{key} is {value}, this Sheen knows {context['expected']}"
        case "union_tag_invalid":
            name = context["discriminator"].strip("'")
            return (
                f"{key}.{name} is {context['tag']!r}, this Sheen knows {context['expected_tags']}"
            )
        case "extra_forbidden":
            return f"{key} is {value}, and this Sheen knows no such key"
        case "missing":
            return f"{key} is missing"
        case "value_error":
            return ": ".join(filter(None, [key, str(context["error"])]))
    return f"{key} is {value}: {problem['msg']}"
