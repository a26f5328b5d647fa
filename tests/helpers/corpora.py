"""What tests of inputs share: small corpora in each form, and the jobs' doors to read them by."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.example import NEW_VOICE, clips_of, flac
from sheen.codec.layout import TokenLayout
from sheen.encode.config import EncodeConfig, RecordingLimits
from sheen.encode.output import read_rows
from sheen.encode.stages import DecodeSettings, decode_rows

LAYOUT = TokenLayout(0, 4096, (4, 2, 1))
CLIPS = ("clip-1", "clip-2", "clip-3")
CODES = [[level] * 12 * 2**level for level in range(3)]  # a second
HF_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

Row = dict[str, Any]


def sound(name: str) -> bytes:
    """FLAC of one of CLIPS, each a short recording of its own."""
    return flac(clips_of(NEW_VOICE)[CLIPS.index(name)])


def prepared(*locations: Path | str) -> list[Row]:
    """The rows of an encode job's input after its plan and its first stage."""
    rows = read_rows(EncodeConfig(input=[str(each) for each in locations], output="unused"))
    return decode_rows(
        rows, DecodeSettings(24_000, RecordingLimits(), LAYOUT, 2048 / 24_000)
    ).to_pylist()


def verdicts(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row["id"], row["reason"]) for row in rows]


def own_line(said: str, job: str) -> str:
    """The one line that a job's own process writes; workers' lines come whenever they come."""
    (line,) = [line for line in said.splitlines() if line.startswith(f"jobs/{job}.py: ")]
    return line


def refused(job: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line of a job that ends with status 2."""
    assert job([*argv]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    return line


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("\n\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def with_audio(rows: list[Row], key: str, folder: Path) -> list[Row]:
    for name in CLIPS:
        (folder / f"{name}.flac").write_bytes(sound(name))
    return [row | {key: f"{name}.flac"} for row, name in zip(rows, CLIPS, strict=False)]


def by_jsonl(folder: Path, rows: list[Row]) -> Path:
    return jsonl(folder / "rows.jsonl", with_audio(rows, "audio", folder))


def by_codes(folder: Path, rows: list[Row]) -> Path:
    return jsonl(folder / "rows.jsonl", [row | {"snac_codes": CODES} for row in rows])


def by_parquet(folder: Path, rows: list[Row]) -> Path:
    audio = pa.array([{"bytes": sound(name)} for name in CLIPS[: len(rows)]], HF_AUDIO)
    table = pa.Table.from_pylist(rows).append_column("audio", audio)
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def by_webdataset(folder: Path, rows: list[Row], shard: str = "rows.tar") -> Path:
    with tarfile.open(folder / shard, "w") as tar:
        for name, row in zip(CLIPS, rows, strict=False):
            for suffix, data in (("flac", sound(name)), ("json", json.dumps(row).encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return folder / shard
