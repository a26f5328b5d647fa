"""What becomes of a row that cannot be read now: it has a reason that the next run tries again."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from sheen.codec.layout import TokenLayout
from sheen.data.clips import TRANSIENT
from sheen.data.corpus import MANIFEST_SCHEMA
from sheen.encode.config import RecordingLimits
from sheen.encode.stages import DecodeSettings, decode_rows

SETTINGS = DecodeSettings(24_000, RecordingLimits(), TokenLayout(0, 4096, (4, 2, 1)), 2048 / 24_000)


def test_what_cannot_be_read_now_is_not_what_cannot_be_decoded(tmp_path: Path) -> None:
    """A network that fails for a minute raises as a file does that stands where a folder was."""
    (tmp_path / "file").write_bytes(b"no sound")
    places = {"missing": "gone.wav", "not read": "file/a.wav", "unreadable": "file"}
    rows: list[dict[str, Any]] = [
        dict.fromkeys(MANIFEST_SCHEMA.names)
        | {"key": key, "id": reason, "source": "line 1", "text": "one"}
        | {"audio": str(tmp_path / place)}
        for key, (reason, place) in enumerate(places.items())
    ]
    found = decode_rows(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), SETTINGS).to_pylist()
    assert [row["reason"] for row in found] == list(places)
    for row in found:
        assert row["audio"] in row["detail"]
    assert {reason for reason in places if reason in TRANSIENT} == {"missing", "not read"}
