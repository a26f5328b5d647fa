"""Whether the recordings are still those that an output was made of.

Owns the file of what is known of each: its size, when it was last changed, and a hash of its size
and first MiB, which is read again only if one of the others differs. Decodes nothing.
"""

import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sheen.prepare.sources.recordings import Source
from sheen.runs.output import start_digest
from sheen.storage import files, uris

STATES = "recordings.json"
_THREADS = 16
"""That wait for a network."""

State = dict[str, Any]


def changed_recordings(output: str, sources: Sequence[Source], used: Collection[str]) -> set[str]:
    """Names of the sources whose file is another one than when it was noted; notes all of them.

    `used`: names of the sources that the output has results of. Raises ValueError naming the first
    of these that has changed, and notes nothing. One that cannot be read now is as it was.
    """
    where = uris.join(output, STATES)
    before: dict[str, State] = json.loads(files.read_bytes(where)) if files.exists(where) else {}
    # Many rows may be in one file: the first of them has its name here.
    first: dict[str, str] = {}
    for source in sources:
        first.setdefault(source.location, source.name)
    with ThreadPoolExecutor(_THREADS) as pool:
        states = pool.map(lambda pair: _state(pair[0], before.get(pair[1])), first.items())
        now = {name: state for name, state in zip(first.values(), states, strict=True) if state}
    other = {
        location
        for location, name in first.items()
        if name in now and name in before and now[name]["digest"] != before[name]["digest"]
    }
    bad = sorted({one.location for one in sources if one.location in other and one.name in used})
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise ValueError(
            f"--input {bad[0]}{more}: it is another recording than the one that --output {output} "
            "was made of; put that one back, or give another --output"
        )
    if (noted := before | now) != before:
        files.write_bytes(where, json.dumps(noted, indent=0).encode() + b"\n")
    return {source.name for source in sources if source.location in other}


def _state(location: str, known: State | None) -> State | None:
    try:
        filesystem, path = uris.open_filesystem(location)
        with uris.network_errors(location):
            info = filesystem.get_file_info(path)
    except (OSError, ValueError):
        return None
    stamp = {"size": info.size, "changed": info.mtime_ns}
    if known is not None and None not in stamp.values() and stamp.items() <= known.items():
        return known
    digest = start_digest(location)
    return None if digest is None else stamp | {"digest": digest}
