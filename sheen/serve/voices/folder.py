"""The folder of uploaded voices: a path or URI that all replicas share.

Owns its files. A voice consists of a JSON record, which makes it exist, and the recording as it was
sent, which is kept so that another codec can encode it again. File names are hashes of the voices'
names, so that no name can act as a path. A record is written atomically where the filesystem can
rename, and deleted before its recording. A voice that another replica has added can be used at
once; its other changes, and listings, are seen after FRESH_S at the latest. Knows nothing of HTTP;
its functions block on the filesystem.
"""

import hashlib
import logging
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel

from sheen.codec.layout import Codes
from sheen.storage import files, folders, uris

logger = logging.getLogger(__name__)

FRESH_S = 4.0
"""Seconds for which a read is trusted before the folder is read again."""
NAME = re.compile(r"\w(?:[\w .-]{0,62}[\w])?")
"""Names of voices: letters and digits of any script, and within it spaces, dots, dashes."""
NAME_RULE = (
    "expected 1 to 64 letters, digits, spaces, dots, dashes and underscores, with a letter or "
    "digit at both ends, and no .."
)
RECORD = ".voice.json"


class StoredVoice(BaseModel, extra="forbid"):
    """The JSON record of a voice."""

    format_version: int = 1
    id: str
    name: str
    consent: str
    """Who allowed the use of the voice: an id given by the client."""
    created_at: int
    """Seconds since 1970, UTC."""
    mime_type: str
    file_size: int
    """Size of the recording as it was sent, bytes."""
    sha256: str
    """Hash of the recording as it was sent."""
    ref_text: str
    speaker_description: str | None = None
    codec_sha256: str
    codes: list[list[int]]
    """Codes of each level of the codec, coarse first."""

    def arrays(self) -> Codes:
        return [np.array(level, np.int16) for level in self.codes]


def folded(name: str) -> str:
    """A name as it is stored: in lower case, as in vLLM-Omni, with single spaces."""
    return " ".join(name.lower().split())


def voice_id(name: str) -> str:
    """Id of the voice of a name; the same on every replica, and after another upload."""
    return "voice_" + hashlib.sha256(folded(name).encode()).hexdigest()[:24]


def is_name(name: str) -> bool:
    return NAME.fullmatch(folded(name)) is not None and ".." not in name


class FolderFull(Exception):
    """The folder has as many voices as it may have."""


@dataclass
class _Read:
    at: float
    """When reading began, or writing ended."""
    voice: StoredVoice | None
    """None: it was deleted."""


class VoiceFolder:
    """Reads and writes the folder. Thread-safe."""

    def __init__(self, location: str) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._known: dict[str, _Read] = {}
        self._listed = float("-inf")

    def get(self, name_or_id: str) -> StoredVoice | None:
        """A voice by its name or its id; None if there is none now."""
        key = name_or_id if _is_id(name_or_id) else voice_id(name_or_id)
        with self._lock:
            read = self._known.get(key)
        # A deletion is not trusted: another replica may have added the voice again.
        if read is None or read.voice is None or time.monotonic() - read.at > FRESH_S:
            begun = time.monotonic()
            read = _Read(begun, self._read(key))
            if read.voice is not None:  # else requests for unknown names would fill the memory
                self._remember(key, read)
            else:
                self._forget(begun, [key])
        return read.voice

    def all(self) -> list[StoredVoice]:
        """Every voice, the oldest first."""
        if time.monotonic() - self._listed > FRESH_S:
            listed = time.monotonic()
            keys = self._keys()
            for key, voice in zip(keys, files.map_ahead(self._read, keys), strict=True):
                self._remember(key, _Read(listed, voice))
            with self._lock:
                others = self._known.keys() - set(keys)
                self._listed = max(self._listed, listed)
            self._forget(listed, others)
        with self._lock:
            voices = [read.voice for read in self._known.values() if read.voice is not None]
        return sorted(voices, key=lambda voice: (voice.created_at, voice.name))

    def put(self, voice: StoredVoice, recording: bytes, most: int) -> None:
        """Store a voice, replacing one of the same name. Raises FolderFull if there are `most`
        others."""
        with self._writing:
            if most <= len(set(self._keys()) - {voice.id}):
                raise FolderFull
            before = self._read(voice.id)
            files.write_bytes(self._recording(voice), recording)
            files.write_bytes(self._record(voice.id), folders.dump_record(voice))
            if before is not None and before.sha256 != voice.sha256:
                files.delete(self._recording(before))
            self._remember(voice.id, _Read(time.monotonic(), voice))

    def delete(self, name_or_id: str) -> StoredVoice | None:
        """Delete a voice and its recording. Returns it, None if there is none."""
        key = name_or_id if _is_id(name_or_id) else voice_id(name_or_id)
        with self._writing:
            if (voice := self._read(key)) is not None:
                files.delete(self._record(key))
                files.delete(self._recording(voice))
                # Remembered until a later listing: one that began before may have read the voice.
                self._remember(key, _Read(time.monotonic(), None))
        return voice

    def recording(self, voice: StoredVoice) -> bytes:
        """The recording as it was sent. OSError if it has been deleted."""
        return files.read_bytes(self._recording(voice))

    def _keys(self) -> list[str]:
        """Ids of the stored voices, from the folder itself."""
        names = files.list_names(self._location)
        return [name.removesuffix(RECORD) for name in names if name.endswith(RECORD)]

    def _remember(self, key: str, read: _Read) -> None:
        """Keep what was read, unless something newer is known."""
        with self._lock:
            if key not in self._known or self._known[key].at <= read.at:
                self._known[key] = read

    def _forget(self, at: float, keys: Iterable[str]) -> None:
        """Drop these keys, which were not there at this time, unless something newer is known."""
        with self._lock:
            for key in keys:
                if key in self._known and self._known[key].at <= at:
                    del self._known[key]

    def _read(self, key: str) -> StoredVoice | None:
        path = self._record(key)
        if not files.exists(path):
            return None
        try:
            return folders.read_record(path, StoredVoice)
        except FileNotFoundError:  # deleted in between
            return None
        except ValueError as error:
            logger.warning("an uploaded voice is skipped: %s", error)
            return None

    def _record(self, key: str) -> str:
        return uris.join(self._location, key + RECORD)

    def _recording(self, voice: StoredVoice) -> str:
        return uris.join(self._location, f"{voice.id}-{voice.sha256[:16]}.recording")


def _is_id(text: str) -> bool:
    return re.fullmatch(r"voice_[0-9a-f]{24}", text) is not None
