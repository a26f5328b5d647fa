"""What decided a run's result, written beside it, so that only the same run goes on from it.

Owns the file and the comparison. Which fields decide, and what the user is told to do, is the
job's.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sheen.core import files


def _bare(location: str) -> str:
    # A submitted job runs in another copy of the working directory each time.
    if not files.is_uri(location) and Path(location).exists():
        return Path(location).name
    return location


def claim(location: str, fields: Mapping[str, Any], paths: tuple[str, ...] = ()) -> str:
    """Record `fields` at a path or URI, or compare them with what is recorded there.

    Returns "" when the run is new or the same, else what differs. `paths` names the fields that
    hold a path, or a list of them: of an existing one only the last part counts.
    """
    decided = dict(fields)
    for name in paths:
        value = decided[name]
        decided[name] = _bare(value) if isinstance(value, str) else [_bare(one) for one in value]
    if not files.exists(location):
        files.write_bytes(location, json.dumps(decided, indent=2).encode() + b"\n")
        return ""
    before = json.loads(files.read_bytes(location))
    return "; ".join(
        f"{name} was {before.get(name)!r}, now {value!r}"
        for name, value in decided.items()
        if before.get(name) != value
    )
