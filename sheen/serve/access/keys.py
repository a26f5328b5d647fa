"""API keys: where they stand, how they are kept, and how a file of them is followed.

Owns reading keys and noticing that their file has changed. Keys are kept and compared as hashes, in
constant time; none is ever logged. Knows nothing about requests.
"""

import hashlib
import hmac
import logging
import os
import re
import threading
import time
from collections.abc import Iterable

from sheen.storage import files, uris

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "SHEEN_API_KEYS"
RELOAD_S = 4.0
"""A change of the file is known so soon; with what a WebSocket takes to notice, within 10 s."""
HOLD_S = 60.0
"""While the file cannot be read, the keys last read are good for so long, and then none is."""
FIRST_READ_S = 10.0
"""A replica does not wait longer for the file before it starts, with no key yet."""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def is_known(key: str, digests: Iterable[str]) -> bool:
    """Whether it is one of the keys."""
    found = digest(key)
    # All are compared: how long it takes says nothing about which one was near.
    return sum(hmac.compare_digest(found, known) for known in digests) > 0


def read_keys(location: str | None) -> frozenset[str]:
    """Hashes of the keys in a file, a path or URI, or in SHEEN_API_KEYS (commas between them).

    ValueError when they cannot be read, when there are none, because a server without keys must be
    asked for, and for a key that no header can carry.
    """
    if location is not None:
        where = f"args.keys_file {shown(location)}"
        try:
            digests = read_file(location)
        except (OSError, ValueError) as error:
            raise ValueError(f"{where}: {_reason(error, location)}") from error
    else:
        where = f"the environment variable {KEYS_VARIABLE}"
        try:
            digests = _hashed(os.environ.get(KEYS_VARIABLE, "").split(","))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not digests:
        raise ValueError(
            f"{where} holds no key. Put one into it (`openssl rand -hex 32` makes one), or set "
            "args.auth to none to let everybody in who reaches the port"
        )
    return digests


def read_file(location: str) -> frozenset[str]:
    """Hashes of the keys in a file: one a line; what begins with `#` is a comment, at the beginning
    of a line or after white space. OSError and ValueError when it cannot be read."""
    lines = files.read_bytes(location).decode("utf-8-sig").splitlines()
    return _hashed(re.split(r"(?:^|\s)#", line, maxsplit=1)[0] for line in lines)


def _hashed(entries: Iterable[str]) -> frozenset[str]:
    keys = [key for entry in entries if (key := entry.strip())]
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("a key may hold printable ASCII without spaces only")
    return frozenset(digest(key) for key in keys)


def located(location: str) -> str:
    """A location that means the same in any process. Links are kept: where secrets are mounted, a
    change is a link that points elsewhere, and what it pointed to is gone."""
    if uris.is_uri(location):
        return location
    return os.path.abspath(os.path.expanduser(location))


def shown(location: str) -> str:
    """A location as it may be logged: URIs can hold credentials."""
    return re.sub(r"//[^/@]*@", "//", uris.split_options(location)[0])


def _reason(error: Exception, location: str) -> str:
    return str(error).replace(location, shown(location))


class KeyFile:
    """The keys of a file as they are now. A thread reads it again every `reload_s`."""

    def __init__(self, location: str, reload_s: float = RELOAD_S, hold_s: float = HOLD_S) -> None:
        """Returns when the file was read or could not be; until it was, no key is known."""
        self._location, self._where = location, f"args.keys_file {shown(location)}"
        self._reload_s, self._hold_s = reload_s, hold_s
        self._digests: frozenset[str] | None = None
        self._read_at = float("-inf")
        self._told_at = float("-inf")
        self._failing = False
        self._closed, self._tried = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sheen-keys", daemon=True)
        self._thread.start()
        self._tried.wait(FIRST_READ_S)

    def digests(self) -> frozenset[str] | None:
        """Of the keys that are good now; None when that is not known: then none is."""
        # By the clock, and not by the thread: a network may keep a read waiting for ever.
        if time.monotonic() - self._read_at <= self._hold_s:
            return self._digests
        if time.monotonic() - self._told_at >= HOLD_S:
            self._told_at = time.monotonic()
            logger.error("%s has not been read in time: all requests are refused", self._where)
        return None

    def close(self) -> None:
        self._closed.set()
        self._thread.join(self._reload_s)

    def _follow(self) -> None:
        while True:
            try:
                self._take(read_file(self._location))
            except Exception as error:  # noqa: BLE001  whatever a filesystem raises, it is told
                self._miss(error)
            self._tried.set()
            if self._closed.wait(self._reload_s):
                return

    def _take(self, digests: frozenset[str]) -> None:
        before, self._digests = self._digests, digests
        self._read_at, self._told_at, self._failing = time.monotonic(), float("-inf"), False
        if digests == before:
            return
        known = before or frozenset()
        log = logger.info if digests else logger.error
        log(
            "%s: %d keys came, %d went, %d in all%s",
            self._where,
            len(digests - known),
            len(known - digests),
            len(digests),
            "" if digests else ": all requests are refused",
        )

    def _miss(self, error: Exception) -> None:
        if not self._failing:
            self._failing = True
            logger.error(
                "%s cannot be read: the keys known hold for %g s from when it last was, then all "
                "requests are refused (%s)",
                self._where,
                self._hold_s,
                _reason(error, self._location),
            )
        self.digests()  # says so when the time is over, though nobody asks
