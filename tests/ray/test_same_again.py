"""The same command again: what failed for now is tried again, and other content is refused.

Through the jobs' doors: files in, rows and message out.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from helpers.corpora import own_line
from helpers.example import CODEC, NEW_VOICE, ROOT, clips_of, flac, load_script
from helpers.resident import Resident
from helpers.tasks import as_tasks
from helpers.training import metrics, train_config
from sheen.data import dataset
from sheen.encode.stages import EncodeWorker
from sheen.train.job import run as train

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

encode = load_script(ROOT / "jobs" / "encode.py").main

TEXT = "five six seven eight nine"
"""Long enough for every clip here."""


def copy_clip(number: int, target: Path) -> None:
    """One of some short recordings, counted from 1."""
    target.write_bytes(flac(clips_of(NEW_VOICE)[number]))


def flags(location: Path, output: Path, codec: Path = CODEC) -> list[str]:
    words = ["--input", str(location), "--output", str(output), "--codec", str(codec)]
    return [*words, "--num-workers", "1"]


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    rows = [
        row | {"status": path.parent.name.partition("=")[2]}
        for path in sorted((output / "rows").rglob("*.parquet"))
        for row in pq.ParquetFile(path).read().to_pylist()
    ]
    assert len({row["id"] for row in rows}) == len(rows), "a row stands twice"
    return {row["id"]: row for row in rows}


def jsonl(folder: Path) -> Path:
    """Six rows in two blocks; of the second recording nothing is there, of the fifth a pointer."""
    folder.mkdir()
    lines = []
    for n in range(1, 7):
        lines.append(json.dumps({"id": f"r{n}", "audio": f"clip-{n}.flac", "text": TEXT}))
        if n not in (2, 5):
            copy_clip(n, folder / f"clip-{n}.flac")
    (folder / "clip-5.flac").write_bytes(POINTER)
    (folder / "bad.wav").write_bytes(b"no sound" * 100)
    lines[3] = json.dumps({"id": "r4", "audio": "bad.wav", "text": TEXT})
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    return folder / "in.jsonl"


def ljspeech(folder: Path) -> Path:
    (folder / "wavs").mkdir(parents=True)
    lines = []
    for n in range(1, 7):
        lines.append(f"r{n}|{TEXT}\n")
        if n not in (2, 5):
            copy_clip(n, folder / "wavs" / f"r{n}.flac")
    (folder / "wavs" / "r4.flac").write_bytes(b"no sound" * 100)
    (folder / "metadata.csv").write_text("".join(lines))
    return folder


@pytest.fixture
def encoding_in_tasks(ray_cluster: None) -> Iterator[None]:
    with as_tasks(EncodeWorker):
        yield


@pytest.mark.parametrize("form", ["jsonl", pytest.param("ljspeech", marks=pytest.mark.soak)])
def test_rows_that_failed_for_now_are_tried_again(
    encoding_in_tasks: None, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location = (jsonl if form == "jsonl" else ljspeech)(tmp_path / "in")
    folder = tmp_path / "in" if form == "jsonl" else tmp_path / "in" / "wavs"
    output = tmp_path / "out"
    assert encode(flags(location, output)) == 0
    said = capsys.readouterr().out
    assert "3 of 6 recordings encoded" in said
    assert "2 of those could not be read; the same command tries them again" in said
    before = rows_of(output)
    assert {name for name, row in before.items() if row["reason"] == "missing"} == {"r2", "r5"}
    assert before["r4"]["reason"] == "unreadable"
    rejected = output / "rows" / "status=rejected"
    shutil.copytree(rejected, tmp_path / "rejected")
    for n in (2, 5):
        name = f"clip-{n}.flac" if form == "jsonl" else f"r{n}.flac"
        copy_clip(n, folder / name)
    assert encode(flags(location, output)) == 0
    after = rows_of(output)
    assert {name for name, row in after.items() if row["status"] == "encoded"} == {
        "r1", "r2", "r3", "r5", "r6"
    }  # fmt: skip
    assert after["r4"] == before["r4"]
    for name in ("r1", "r3", "r6"):
        assert after[name] == before[name]
    keys = [row["key"] for row in read_encoded(output)]
    assert keys == sorted(keys)
    assert dataset.read_info(str(output))
    # As if the second run had died between the two files of a block.
    shutil.copytree(tmp_path / "rejected", rejected, dirs_exist_ok=True)
    capsys.readouterr()
    assert encode(flags(location, output)) == 0
    assert "5 of 6 recordings encoded" in capsys.readouterr().out
    assert rows_of(output) == after


def read_encoded(output: Path) -> list[dict[str, Any]]:
    paths = sorted((output / "rows" / "status=encoded").glob("*.parquet"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


# Content, not names


def small_corpus(folder: Path) -> Path:
    (folder / "wavs").mkdir(parents=True)
    for n in range(1, 5):
        copy_clip(n, folder / "wavs" / f"r{n}.flac")
    (folder / "metadata.csv").write_text("".join(f"r{n}|{TEXT}\n" for n in range(1, 5)))
    return folder


def test_other_recordings_of_the_same_names_are_refused(
    corpus: Path, encoded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(encoded, tmp_path / "out"))
    before = rows_of(output)
    other = Path(shutil.copytree(corpus, tmp_path / corpus.name))
    clips = sorted((other / "wavs").iterdir())
    contents = [clip.read_bytes() for clip in clips]
    for clip, content in zip(clips, [*contents[1:], contents[0]], strict=True):
        clip.write_bytes(content)
    capsys.readouterr()
    words = ["--output", str(output), "--codec", str(CODEC)]
    assert encode(["--input", str(other), *words]) == 2
    said = re.search(r"(\d+) of (\d+) recordings that were compared have another content",
                     capsys.readouterr().err)  # fmt: skip
    assert said
    assert said[1] == said[2]
    assert rows_of(output) == before
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    assert encode(["--input", str(moved), *words]) == 0
    assert rows_of(output) == before


def test_a_codec_that_does_not_load_claims_nothing(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    location, output = small_corpus(tmp_path / "in"), tmp_path / "out"
    codec = tmp_path / "codec"
    shutil.copytree(CODEC, codec)
    for content in (POINTER, b"torn", b"\x80\x04junk"):
        (codec / "pytorch_model.bin").write_bytes(content)
        assert encode(flags(location, output, codec)) == 2
        said = capsys.readouterr().err
        assert str(codec) in own_line(said, "encode")
        assert "Traceback" not in said
        assert not output.exists()


def test_training_on_other_data_of_the_same_name_is_refused(
    encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    other = tmp_path / encoded.name
    shutil.copytree(encoded, other)
    (rows,) = (other / "rows" / "status=encoded").glob("*.parquet")
    pq.write_table(pq.ParquetFile(rows).read().slice(4), rows)
    with pytest.raises(ValueError, match=r"data content was '16 utterances.*now '12 utterances"):
        train(train_config(other, base, trained))
    model = tmp_path / base.name
    shutil.copytree(base, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="model content was"):
        train(train_config(encoded, model, trained))


def test_training_resumes_where_data_and_model_were_moved(
    resident: Resident, encoded: Path, base: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(encoded, tmp_path / "elsewhere")
    shutil.copytree(base, tmp_path / "base")
    """Of a run that was recorded before there were some of today's fields."""
    output = Path(shutil.copytree(trained, tmp_path / "out"))
    record = output / "run" / "run.json"
    fields = json.loads(record.read_text())
    since = ("history_noise", "level_weights", "level_weights_steps", "guided_attention")
    for name in (*since, "guided_attention_steps"):
        assert fields.pop(name) is None
    record.write_text(json.dumps(fields))
    resident.train(train, train_config(tmp_path / "elsewhere", tmp_path / "base", output))
    assert metrics(output) == metrics(trained)
