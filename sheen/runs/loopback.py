"""The settings of a Ray that only this user, on this machine, can use.

Owns the names of Ray's settings and the token's file. Knows no Ray: it reads the first of them when
it is imported, and commands of Ray take all of them from their environment.

`--node-ip-address=127.0.0.1` does not keep Ray on loopback: it replaces that address with the
machine's own (docs/upstream.md).
"""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray reads it on Linux too. "0": no node but this one, and every port is on 127.0.0.1."""
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"


def folder_until_exit() -> Path:
    """A new folder that only this user may open; it ends with this process."""
    folder = Path(tempfile.mkdtemp(prefix="sheen-token-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def settings(folder: Path) -> dict[str, str]:
    """The environment of a Ray that listens on loopback and asks for a new token, kept in `folder`.

    Other users of the machine reach loopback too: the token is what keeps them out.
    """
    return {SWITCH: "0", "RAY_AUTH_MODE": "token", TOKEN_PATH: str(write_token(folder))}


def write_token(folder: Path) -> Path:
    """A new token, in a file that its owner alone may read."""
    path = folder / "ray-token"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(secrets.token_hex(32))
    return path


def has_token() -> bool:
    """Whether this user has chosen a token, in one of the three places where Ray looks."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get(TOKEN_PATH)
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()
