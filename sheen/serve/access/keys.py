"""API keys: their sources, their hashes, and following changes of a file of keys.

Owns reading keys and noticing that their file has changed. Keys are kept and compared as hashes, in
constant time, and never logged. Knows nothing about requests.
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
"""Seconds between reads of the file. With the time a WebSocket takes to notice, a change takes
effect within 10 s."""
HOLD_S = 60.0
"""Seconds for which the keys last read stay valid while the file cannot be read; then none is."""
FIRST_READ_S = 10.0
"""Longest wait of a starting replica for the file, seconds; after it, it starts with no key yet."""


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def is_known(key: str, digests: Iterable[str]) -> bool:
    """Whether the hash of `key` is among `digests`."""
    found = digest(key)
    # All are compared, so that the time taken does not reveal which one nearly matched.
    return sum(hmac.compare_digest(found, known) for known in digests) > 0


def read_keys(location: str | None) -> frozenset[str]:
    """Hashes of the keys in a file, a path or URI, or in SHEEN_API_KEYS (separated by commas).

    ValueError when they cannot be read, when there are none (a server without keys must be
    requested with args.auth none), and for a key that a header cannot carry.
    """
    if location is not None:
        where = f"args.keys_file {without_credentials(location)}"
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
    """Hashes of the keys in a file, one a line. `#` at the beginning of a line or after white space
    begins a comment. OSError and ValueError when the file cannot be read."""
    lines = files.read_bytes(location).decode("utf-8-sig").splitlines()
    return _hashed(re.split(r"(?:^|\s)#", line, maxsplit=1)[0] for line in lines)


def _hashed(entries: Iterable[str]) -> frozenset[str]:
    keys = [key for entry in entries if (key := entry.strip())]
    if not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError("a key may hold printable ASCII without spaces only")
    return frozenset(digest(key) for key in keys)


def absolute_location(location: str) -> str:
    """A location that means the same in any process. Links are not resolved: where secrets are
    mounted, an update points the link elsewhere and deletes its old target."""
    if uris.is_uri(location):
        return location
    return os.path.abspath(os.path.expanduser(location))


def without_credentials(location: str) -> str:
    """A location without the credentials that a URI can hold, for logs and messages."""
    return re.sub(r"//[^/@]*@", "//", uris.split_options(location)[0])


def _reason(error: Exception, location: str) -> str:
    return str(error).replace(location, without_credentials(location))


class KeyFile:
    """The current keys of a file. A thread reads it again every `reload_s`."""

    def __init__(self, location: str, reload_s: float = RELOAD_S, hold_s: float = HOLD_S) -> None:
        """Waits for the first read, at most FIRST_READ_S. Until a read succeeds, no key is
        valid."""
        self._location, self._where = location, f"args.keys_file {without_credentials(location)}"
        self._reload_s, self._hold_s = reload_s, hold_s
        self._digests: frozenset[str] | None = None
        self._read_at = float("-inf")
        self._warned_at = float("-inf")
        self._failing = False
        self._closed, self._tried = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sheen-keys", daemon=True)
        self._thread.start()
        self._tried.wait(FIRST_READ_S)

    def digests(self) -> frozenset[str] | None:
        """Hashes of the keys that are valid now; None when they are unknown, and then none is
        valid."""
        # Checked here and not in the thread, where a read over a network may block for ever.
        if time.monotonic() - self._read_at <= self._hold_s:
            return self._digests
        if time.monotonic() - self._warned_at >= HOLD_S:
            self._warned_at = time.monotonic()
            logger.error("%s has not been read in time: all requests are refused", self._where)
        return None

    def close(self) -> None:
        self._closed.set()
        self._thread.join(self._reload_s)

    def _follow(self) -> None:
        while True:
            try:
                self._take(read_file(self._location))
            except Exception as error:  # noqa: BLE001  a filesystem may raise anything; it is logged
                self._miss(error)
            self._tried.set()
            if self._closed.wait(self._reload_s):
                return

    def _take(self, digests: frozenset[str]) -> None:
        before, self._digests = self._digests, digests
        self._read_at, self._warned_at, self._failing = time.monotonic(), float("-inf"), False
        if digests == before:
            return
        known = before or frozenset()
        log = logger.info if digests else logger.error
        log(
            "%s: %d keys added, %d removed, %d in all%s",
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
                "%s cannot be read: its keys stay valid for %g s after the last successful read, "
                "then all requests are refused (%s)",
                self._where,
                self._hold_s,
                _reason(error, self._location),
            )
        self.digests()  # logs the expiry, even when no request comes
