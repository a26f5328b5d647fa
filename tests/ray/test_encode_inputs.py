"""One corpus in each form of input: the same codes from the job, whatever it came in."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from helpers.example import CODEC
from helpers.tasks import as_tasks
from sheen.audio.io import decode_audio, from_pcm16, to_pcm16
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.data.corpus import read_manifest
from sheen.encode.config import EncodeConfig, RecordingLimits
from sheen.encode.job import run
from sheen.encode.stages import DecodeSettings, EncodeWorker, decode_rows

Codes = dict[str, list[list[int]]]


FORMS = ("folder", "lines", "parquet", "tar", "codes")


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[tuple[str, Path]]:
    """Name and recording of six utterances."""
    lines = (corpus / "metadata.csv").read_text("utf-8").splitlines()[:6]
    names = [line.split("|")[0] for line in lines]
    return [(name, corpus / "wavs" / f"{name}.flac") for name in names]


Rows = list[tuple[str, Path]]


def as_folder(rows: Rows, target: Path, codes: Codes) -> list[str]:
    (target / "wavs").mkdir()
    for _, path in rows:
        (target / "wavs" / path.name).symlink_to(path)
    lines = "".join(f"{name}|folder: {name}\n" for name, _ in rows)
    (target / "metadata.csv").write_text(lines, "utf-8")
    return [str(target)]


def as_lines(rows: Rows, target: Path, codes: Codes) -> list[str]:
    """Three recordings of their own, and three that are parts of one, in two files and a glob."""
    whole = [{"audio": str(path), "text": f"lines: {name}"} for name, path in rows[:3]]
    pieces, at, cut = [], 0, []
    for name, path in rows[3:]:
        samples, rate = soundfile.read(path, dtype="int16")
        end = at + len(samples)
        span = {"start": at / rate, "end": end / rate}
        cut.append({"audio": "joined.flac", "text": f"lines: {name}"} | span)
        pieces.append(samples)
        at = end
    soundfile.write(target / "joined.flac", np.concatenate(pieces), rate, subtype="PCM_16")
    for file, part in (("a.jsonl", whole), ("b.jsonl", cut)):
        identified = [row | {"id": row["text"]} for row in part]
        (target / file).write_text("\n".join(map(json.dumps, identified)), "utf-8")
    return [str(target / "*.jsonl")]


def as_parquet(rows: Rows, target: Path, codes: Codes) -> list[str]:
    for number, part in enumerate((rows[:4], rows[4:])):
        texts = [f"parquet: {name}" for name, _ in part]
        audio = [{"bytes": path.read_bytes(), "path": path.name} for _, path in part]
        table = pa.table({"id": texts, "text": texts, "audio": audio})
        pq.write_table(table, target / f"train-{number}.parquet", row_group_size=2)
    return [str(target)]


def as_tar(rows: Rows, target: Path, codes: Codes) -> list[str]:
    shards = [target / "shard-0.tar", target / "shard-1.tar"]
    for shard, part in zip(shards, (rows[:2], rows[2:]), strict=True):
        with tarfile.open(shard, "w") as tar:
            for name, path in part:
                text = f"tar: {name}".encode()
                for suffix, data in (("flac", path.read_bytes()), ("txt", text)):
                    member = tarfile.TarInfo(f"tar-{name}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return list(map(str, shards))


def as_codes(rows: Rows, target: Path, codes: Codes) -> list[str]:
    """And two rows of codes that are not of this codec."""
    texts = {name: f"codes: {name}" for name, _ in rows}
    lines = [{"text": text, "snac_codes": codes[name]} for name, text in texts.items()]
    good = lines[0]["snac_codes"]
    for bad in ([good[0], good[1][:-1], good[2]], [[4096], [0, 0], [0, 0, 0, 0]]):
        lines.append({"text": "codes: of another codec", "snac_codes": bad})
    identified = [row | {"id": f"codes {n}"} for n, row in enumerate(lines)]
    (target / "codes.jsonl").write_text("\n".join(map(json.dumps, identified)), "utf-8")
    return [str(target / "codes.jsonl")]


MAKERS = dict(zip(FORMS, (as_folder, as_lines, as_parquet, as_tar, as_codes), strict=True))


@pytest.fixture(scope="module")
def expected(rows: Rows, codec: Codec) -> Codes:
    """Codes by name, as the codec makes them of one recording by itself."""

    def alone(path: Path) -> list[list[int]]:
        samples = decode_audio(path.read_bytes(), codec.sample_rate)
        wave = torch.from_numpy(from_pcm16(to_pcm16(samples)))
        return [level.tolist() for level in codec.encode([wave])[0]]

    return {name: alone(path) for name, path in rows}


@pytest.fixture(scope="module")
def output(
    ray_cluster: None, rows: Rows, expected: Codes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of one run over all forms."""
    folder = tmp_path_factory.mktemp("forms")
    locations = []
    for form, make in MAKERS.items():
        (folder / form).mkdir()
        locations += make(rows, folder / form, expected)
    fields = {"input": locations, "output": str(folder / "out"), "codec": str(CODEC)}
    with as_tasks(EncodeWorker):
        run(EncodeConfig(**fields, min_seconds=0.0, num_workers=1))
    return folder / "out"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gives_the_same_codes(form: str, output: Path, expected: Codes) -> None:
    encoded = pq.read_table(str(output / "rows" / "status=encoded")).to_pylist()
    codes = {
        row["text"].removeprefix(f"{form}: "): row["snac_codes"]
        for row in encoded
        if row["text"].startswith(f"{form}: ")
    }
    assert codes == expected
    assert len(encoded) == len(FORMS) * len(expected)


def test_codes_of_another_codec_are_refused_row_by_row(output: Path) -> None:
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert report["rejects"].keys() == {"bad codes"}
    assert report["rejects"]["bad codes"]["rows"] == 2
    assert "codes.jsonl:7" in report["rejects"]["bad codes"]["examples"][0]


def test_parts_of_one_recording_fail_alike_and_it_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "noise.flac").write_bytes(b"no sound" * 100)
    spans = [{"start": second, "end": second + 1} for second in range(3)]
    lines = [
        json.dumps({"audio": "noise.flac", "text": "a part", "id": f"part-{number}"} | span)
        for number, span in enumerate(spans)
    ]
    (tmp_path / "lines.jsonl").write_text("\n".join(lines), "utf-8")
    preparation = DecodeSettings(
        24_000, RecordingLimits(), TokenLayout(0, 4096, (4, 2, 1)), 2048 / 24_000
    )
    rows = decode_rows(read_manifest(str(tmp_path / "lines.jsonl")), preparation).to_pylist()
    assert [row["reason"] for row in rows] == ["unreadable"] * 3
    assert len({row["detail"] for row in rows}) == 1
    assert rows[0]["read_s"] > 0
    assert rows[1]["read_s"] == rows[2]["read_s"] == 0
