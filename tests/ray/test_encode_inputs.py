"""One corpus in each form of input: the same codes from the job, whatever it came in."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from helpers.example import CODEC
from sheen.codec.layout import TokenLayout
from sheen.data.corpus import read_manifest
from sheen.encode.config import EncodeConfig, Limits
from sheen.encode.job import run
from sheen.encode.stages import DecodeSettings, decode_rows

Codes = dict[str, list[list[int]]]


def encode(output: Path, *locations: Path | str, **fields: Any) -> Codes:
    """Codes by text."""
    report = run(
        EncodeConfig(
            input=[str(location) for location in locations], output=str(output), codec=str(CODEC),
            num_workers=1, **fields,
        )
    )  # fmt: skip
    assert report["rejects"] == {}
    table = pq.read_table(str(output / "rows" / "status=encoded"))
    codes = dict(zip(table["text"].to_pylist(), table["snac_codes"].to_pylist(), strict=True))
    assert len(codes) == report["rows_out"]
    return codes


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[tuple[str, str, Path]]:
    """Id, text and recording of six utterances."""
    lines = (corpus / "metadata.csv").read_text("utf-8").splitlines()[:6]
    names = [line.split("|")[0] for line in lines]
    return [(name, f"text of {name}", corpus / "wavs" / f"{name}.flac") for name in names]


@pytest.fixture(scope="module")
def expected(
    ray_cluster: None,
    rows: list[tuple[str, str, Path]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Codes:
    folder = tmp_path_factory.mktemp("ljspeech")
    (folder / "wavs").mkdir()
    for name, _, path in rows:
        (folder / "wavs" / path.name).symlink_to(path)
        with (folder / "metadata.csv").open("a", encoding="utf-8") as file:
            file.write(f"{name}|text of {name}\n")
    return encode(folder / "out", folder)


# Show 3 of encoding at scale


def test_lines_whole_and_cut(
    rows: list[tuple[str, str, Path]], expected: Codes, tmp_path: Path
) -> None:
    """Three recordings of their own, and three that are parts of one, in two files and a glob."""
    whole = [{"audio": str(path), "text": text} for _, text, path in rows[:3]]
    pieces, at, cut = [], 0, []
    for _, text, path in rows[3:]:
        samples, rate = soundfile.read(path, dtype="int16")
        cut.append(
            {"audio": "joined.flac", "text": text, "start": at / rate,
             "end": (at + len(samples)) / rate}
        )  # fmt: skip
        pieces.append(samples)
        at += len(samples)
    soundfile.write(tmp_path / "joined.flac", np.concatenate(pieces), rate, subtype="PCM_16")
    for name, part in (("a.jsonl", whole), ("b.jsonl", cut)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, part)), "utf-8")
    assert encode(tmp_path / "out", str(tmp_path / "*.jsonl")) == expected


def test_parquet(rows: list[tuple[str, str, Path]], expected: Codes, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, part in enumerate((rows[:4], rows[4:])):
        table = pa.table(
            {
                "text": [text for _, text, _ in part],
                "audio": [{"bytes": path.read_bytes(), "path": path.name} for *_, path in part],
            }
        )
        pq.write_table(table, data / f"train-{number}.parquet", row_group_size=2)
    assert encode(tmp_path / "out", data) == expected


def test_tar(rows: list[tuple[str, str, Path]], expected: Codes, tmp_path: Path) -> None:
    for number, part in enumerate((rows[:2], rows[2:])):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for name, text, path in part:
                for suffix, data in (("flac", path.read_bytes()), ("txt", text.encode())):
                    member = tarfile.TarInfo(f"{name}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    shards = [tmp_path / "shard-0.tar", tmp_path / "shard-1.tar"]
    assert encode(tmp_path / "out", *shards) == expected


def test_codes(expected: Codes, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "snac_codes": codes}) for text, codes in expected.items()]
    (tmp_path / "codes.jsonl").write_text("\n".join(lines), "utf-8")
    assert encode(tmp_path / "out", tmp_path / "codes.jsonl") == expected


def test_codes_of_another_codec_are_refused_row_by_row(
    expected: Codes, tmp_path: Path, ray_cluster: None
) -> None:
    (text, good), *_ = expected.items()
    ragged, large = [good[0], good[1][:-1], good[2]], [[4096], [0, 0], [0, 0, 0, 0]]
    lines = [json.dumps({"text": text, "snac_codes": codes}) for codes in (good, ragged, large)]
    (tmp_path / "codes.jsonl").write_text("\n".join(lines), "utf-8")
    fields = {"input": str(tmp_path / "codes.jsonl"), "output": str(tmp_path / "out")}
    report = run(EncodeConfig(**fields, codec=str(CODEC), num_workers=1, min_seconds=0.0))
    assert report["rows_out"] == 1
    assert report["rejects"]["bad codes"]["rows"] == 2
    assert "codes.jsonl:2" in report["rejects"]["bad codes"]["examples"][0]


def test_parts_of_one_recording_fail_alike_and_it_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "noise.flac").write_bytes(b"no sound" * 100)
    spans = [{"start": second, "end": second + 1} for second in range(3)]
    lines = [
        json.dumps({"audio": "noise.flac", "text": "a part", "id": f"part-{number}"} | span)
        for number, span in enumerate(spans)
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), "utf-8")
    preparation = DecodeSettings(24_000, Limits(), TokenLayout(0, 4096, (4, 2, 1)), 2048 / 24_000)
    rows = decode_rows(read_manifest(str(tmp_path / "lines.jsonl")), preparation).to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable"] * 3
    assert len({row["detail"] for row in rows}) == 1
    assert rows[0]["read_s"] > 0
    assert rows[1]["read_s"] == rows[2]["read_s"] == 0
