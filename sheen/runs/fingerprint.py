"""The fingerprint of a run: what determines its result, stored next to it.

Owns the file, the comparison, and what represents data, models and recordings in it: their content,
never their location. Two corpora may share a name, and a submitted job runs in a fresh copy of the
working directory each time. Which fields matter, and what the user is told to do, is the job's.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sheen.storage import files, uris

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
    when more than half of those known on both sides do: one repaired file is no other corpus.
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
    """One hash of the files directly in a folder that end so, and of their names.

    Behind a URI each is known by its size and first MiB: weights are gigabytes over a network.
    """
    digest = hashlib.sha256()
    for name in sorted(files.list_names(folder)):
        path = uris.join(folder, name)
        if name.endswith(suffixes) and files.kind(path) == files.FILE:
            known = _start_digest(path) if uris.is_uri(folder) else files.sha256(path)
            digest.update(f"{name} {known}\n".encode())
    return digest.hexdigest()


def sample_digests(locations: Sequence[str | None]) -> dict[str, str | None]:
    """Of a few of the files, evenly spread, by place: a hash of their size and first MiB.

    None for one that has no location, or is no file that can be read now, or not yet fetched.
    """
    count = len(locations)
    found: dict[str, str | None] = {}
    for place in sorted({turn * count // SAMPLED for turn in range(SAMPLED)} & {*range(count)}):
        location = locations[place]
        found[str(place)] = None if location is None else _start_digest(location)
    return found


def _start_digest(location: str) -> str | None:
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
