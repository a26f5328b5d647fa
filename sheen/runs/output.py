"""A run's output folder: one job at a time, and the run that it was begun by.

Owns the lock. On a local or network disk the operating system holds it on a file, so it ends with
the process. Object stores have no locks: there the owner rewrites the file every BEAT_S seconds,
and a new job takes over a file that is not renewed while it watches. Of two jobs that start within
the same second on an object store, the last writer wins.

Owns the fingerprint: what determines a run's result, stored next to it, and compared when a job
resumes. Data, models and recordings are in it by their content, never their location: two corpora
may share a name, and a submitted job runs in a fresh copy of the working directory each time. Which
fields matter, and what the user is told to do, is the job's.
"""

import fcntl
import hashlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from sheen.storage import files, uris

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
BEAT_S = 10.0
WATCH_S = 3 * BEAT_S
SETTLE_S = 1.0


@contextmanager
def output_lock(output: str) -> Iterator[None]:
    """Hold the lock of a folder, which is created, for the context.

    Raises ValueError naming who owns it already, and OSError where it cannot be written.
    """
    filesystem, path = uris.open_filesystem(uris.join(output, LOCK_FILE))
    with _locked(Path(path)) if isinstance(filesystem, fs.LocalFileSystem) else _renewed(output):
        yield


def is_unused(output: str) -> bool:
    """Whether a folder holds nothing but its lock file."""
    return files.is_empty(output) or set(files.list_names(output)) <= {LOCK_FILE}


def forget_idle_run(output: str, fingerprint: str) -> None:
    """Delete the file of a fingerprint from a folder that holds nothing else: that run ended before
    it did anything, and another may start."""
    if files.exists(output) and set(files.list_names(output)) <= {LOCK_FILE, fingerprint}:
        files.delete(uris.join(output, fingerprint))


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}


def _taken(output: str, content: bytes) -> ValueError:
    who = "another job"
    with suppress(ValueError, KeyError):
        owner = json.loads(content)
        who = f"another job (process {owner['pid']} on {owner['host']})"
    return ValueError(f"--output {output}: {who} is at work there; wait for its end, or stop it")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    made = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                raise _taken(str(path.parent), file.read()) from None
        except OSError as error:
            file.close()
            logger.warning("%s: this filesystem has no locks (%s)", path, error.strerror)
            with _renewed(str(path.parent)):
                yield
            return
        # An owner that ended meanwhile has removed the file that was opened.
        if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
            break
        file.close()
    with file:
        try:
            file.truncate(0)
            file.write(json.dumps(_me()).encode())
            file.flush()
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # not empty: the job has written
                    path.parent.rmdir()


@contextmanager
def _renewed(output: str) -> Iterator[None]:
    location, me = uris.join(output, LOCK_FILE), _me()
    _wait_for_the_last_owner(output, location)
    files.write_bytes(location, json.dumps(me).encode())
    time.sleep(SETTLE_S)
    content = files.read_bytes(location)
    if json.loads(content)["token"] != me["token"]:
        raise _taken(output, content)
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.wait(BEAT_S):
            count += 1
            try:
                files.write_bytes(location, json.dumps(me | {"beat": count}).encode())
            except OSError as error:
                logger.warning("%s cannot be renewed: %s", location, error)

    thread = threading.Thread(target=beat, name="sheen-lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(OSError):
            files.delete(location)


def _wait_for_the_last_owner(output: str, location: str) -> None:
    """Return when the folder has no owner. Raises ValueError as soon as its owner renews it.

    No clocks are compared: those of two machines may differ.
    """
    if not files.exists(location):
        return
    first = files.read_bytes(location)
    try:
        owner = json.loads(first)
        if owner["host"] == socket.gethostname():
            os.kill(int(owner["pid"]), 0)
    except ProcessLookupError:
        return
    except (ValueError, KeyError, PermissionError):
        pass  # not known to be gone
    logger.info("%s: left by a job or held by one; watching it for %g s", location, WATCH_S)
    until = time.monotonic() + WATCH_S
    while time.monotonic() < until:
        time.sleep(BEAT_S / 5)
        if not files.exists(location):
            return
        if (content := files.read_bytes(location)) != first:
            raise _taken(output, content)


RECORDINGS = "recordings"
"""The field for what `sample_digests` gives."""
SAMPLED = 8
"""Recordings of a corpus that are compared: to read all of them would take as long as the job."""


def check_fingerprint(
    location: str, fields: Mapping[str, Any], content: Collection[str] = ()
) -> str:
    """Write `fields` to a path or URI, or compare them with the fingerprint stored there.

    Returns "" when the run is new or the same, else the differences. A field of `content` that the
    stored fingerprint lacks is not compared: an older version did not write it. RECORDINGS differ
    when more than half of those known on both sides do: one repaired file is the same corpus.
    """
    if not files.exists(location):
        files.write_bytes(location, json.dumps(fields, indent=2).encode() + b"\n")
        return ""
    before = json.loads(files.read_bytes(location))
    differences = []
    for name, value in fields.items():
        if name in before or name not in content:
            compare = _of_recordings if name == RECORDINGS else _of_values
            differences += compare(name, before.get(name), value)
    return "; ".join(differences)


def _of_values(name: str, before: Any, now: Any) -> list[str]:
    return [] if before == now else [f"{name} was {before!r}, now {now!r}"]


def _of_recordings(name: str, before: Any, now: dict[str, str | None]) -> list[str]:
    if not isinstance(before, dict) or before.keys() != now.keys():
        return _of_values(name, before, now)
    known = [place for place in now if None not in (before[place], now[place])]
    other = [place for place in known if before[place] != now[place]]
    if 2 * len(other) <= len(known):
        return []
    return [f"{len(other)} of {len(known)} {name} that were compared have another content"]


def folder_digest(folder: str, suffixes: tuple[str, ...] = ("",)) -> str:
    """A hash of the names and contents of the files directly in a folder with one of the suffixes.

    At a URI only size and first MiB of each file count: weights are gigabytes over a network.
    """
    digest = hashlib.sha256()
    for name in sorted(files.list_names(folder)):
        path = uris.join(folder, name)
        if name.endswith(suffixes) and files.kind(path) == files.FILE:
            known = start_digest(path) if uris.is_uri(folder) else files.sha256(path)
            digest.update(f"{name} {known}\n".encode())
    return digest.hexdigest()


def sample_digests(locations: Sequence[str | None]) -> dict[str, str | None]:
    """For some of the files, evenly spread, by place: a hash of their size and first MiB.

    None for one without a location, or whose file cannot be read now or is a Git LFS pointer.
    """
    count = len(locations)
    found: dict[str, str | None] = {}
    for place in sorted({turn * count // SAMPLED for turn in range(SAMPLED)} & {*range(count)}):
        location = locations[place]
        found[str(place)] = None if location is None else start_digest(location)
    return found


def start_digest(location: str) -> str | None:
    """A hash of a file's size and first MiB; None where it cannot be read now or is a Git LFS
    pointer."""
    try:
        filesystem, path = uris.open_filesystem(location)
        info = filesystem.get_file_info(path)
        if not info.is_file:
            return None
        with uris.network_errors(location), filesystem.open_input_stream(path) as stream:
            start = bytes(stream.read(1 << 20))
    except (OSError, ValueError):
        return None
    if start.startswith(files.LFS_POINTER):
        return None
    return hashlib.sha256(f"{info.size} ".encode() + start).hexdigest()[:16]
