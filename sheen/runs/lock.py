"""The lock of an output folder: one job at a time.

On a local or network disk the operating system holds the lock on a file, so it ends with the
process. Object stores have no locks: there the owner rewrites the file every BEAT_S seconds, and a
newcomer takes over a file that nobody renews while it watches. Of two jobs that start within the
same second on an object store, the last writer wins.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    """Return when nobody owns the folder. Raises ValueError as soon as its owner renews it.

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
