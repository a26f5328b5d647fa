"""The encode job on a cluster: every good row comes out exact, every other row is accounted for."""

import hashlib
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from helpers.example import CODEC, ROOT, load_script
from helpers.tasks import as_tasks
from sheen.audio.io import decode_audio, from_pcm16, to_pcm16
from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec, load_codec
from sheen.data.dataset import read_info, read_utterances
from sheen.encode.config import EncodeConfig
from sheen.encode.job import read_rows, run
from sheen.encode.stages import EncodeWorker, shift_samples

LAYOUT = TokenLayout(first_id=0, codebook_size=4096, strides=(4, 2, 1))
REJECTS = {
    "missing": {"absent", "folder"},
    "empty": {"hollow", "no-samples"},
    "truncated": {"cut", "cut-wav"},
    "unreadable": {"noise", "picture", "not-numbers"},
    "silent": {"silent"},
    "clipped": {"loud"},
    "too long": {"long"},
    "implausible speech rate": {"hasty"},
    "too short": {"blip"},
    "duplicate id": {"twice"},
    "no text": {"mute"},
    "malformed row": {"wide"},
}

main = load_script(ROOT / "jobs" / "encode.py").main

Row = dict[str, Any]


def rows_of(folder: Path) -> dict[str, Row]:
    """The encoded rows by id, read with nothing but pyarrow."""
    files = sorted((folder / "rows" / "status=encoded").glob("*.parquet"))
    rows = [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def codes_alone(codec: Codec, recording: Path) -> list[list[int]]:
    """What the codec makes of one recording by itself, in this process."""
    samples = decode_audio(recording.read_bytes(), codec.sample_rate)
    wave = torch.from_numpy(from_pcm16(to_pcm16(samples)))
    return [level.tolist() for level in codec.encode([wave])[0]]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def good(corpus: Path) -> dict[str, str]:
    """Metadata lines of the good rows by id: a third of the corpus, and two of other kinds."""
    lines = (corpus / "metadata.csv").read_text("utf-8").splitlines()[::3]
    lines += ["stereo|44.1 kHz, two channels", "twice|Vorbis|the first of its id|Åsa"]
    return {line.split("|")[0]: line for line in lines}


@pytest.fixture(scope="module")
def mixed(corpus: Path, good: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good rows between rows with every fault that a corpus may have."""
    folder = tmp_path_factory.mktemp("mixed")
    wavs = folder / "wavs"
    shutil.copytree(corpus / "wavs", wavs)
    whole = wavs / f"{next(iter(good))}.flac"
    speech, rate = soundfile.read(whole)
    soundfile.write(wavs / "stereo.wav", np.stack([speech, -0.5 * speech], axis=1), 44100)
    soundfile.write(wavs / "twice.ogg", speech, rate)
    (wavs / "hollow.wav").touch()
    soundfile.write(wavs / "no-samples.wav", np.zeros(0), rate)
    soundfile.write(wavs / "silent.wav", np.full(rate, 1e-4), rate)
    soundfile.write(wavs / "loud.wav", np.clip(40 * speech, -1, 1), rate)
    soundfile.write(wavs / "long.flac", np.tile(speech, 1 + 61 * rate // len(speech)), rate)
    shutil.copy(whole, wavs / "hasty.flac")
    (wavs / "picture.wav").write_bytes((ROOT / "docs" / "page.png").read_bytes())
    soundfile.write(wavs / "not-numbers.wav", np.full(rate, np.nan), rate, subtype="FLOAT")
    (wavs / "folder.wav").mkdir()
    (wavs / "cut.flac").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    soundfile.write(wavs / "cut-wav.wav", speech, rate)
    half = (wavs / "cut-wav.wav").read_bytes()[: len(speech)]
    (wavs / "cut-wav.wav").write_bytes(half)
    (wavs / "noise.wav").write_bytes(np.random.default_rng(0).bytes(9000))
    soundfile.write(wavs / "blip.wav", speech[: rate // 20], rate)
    shutil.copy(whole, wavs / "mute.flac")
    faulty = ["absent|no such file", "hollow|0 bytes", "no-samples|0 samples", "cut|half a file"]
    faulty += ["noise|random bytes", "blip|0.05 seconds", "mute|  ", "wide|1|2|3|4"]
    faulty += ["silent|softer than any voice", "loud|full scale", "long|a minute and more"]
    faulty += ["picture|a PNG", "not-numbers|NaN", "folder|no file", "cut-wav|half of a WAV"]
    faulty += [f"hasty|{'far too much to say ' * 40}"]
    pairs = itertools.zip_longest(good.values(), faulty)
    lines = [line for pair in pairs for line in pair if line is not None]
    (folder / "metadata.csv").write_text("\n".join([*lines, "twice|again"]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def output(ray_cluster: None, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run over the mixed folder leaves."""
    folder = tmp_path_factory.mktemp("output") / "new" / "codes"
    report = run(
        EncodeConfig(
            input=str(mixed),
            output=str(folder),
            codec=str(CODEC),
            num_workers=1,
            jsonl=str(folder.parent / "lines" / "codes.jsonl"),
        )
    )
    assert report == json.loads((folder / "report.json").read_text("utf-8"))
    return folder


# One run over good and bad rows


def test_every_good_row_is_in_the_output_with_its_own_codes(
    output: Path, mixed: Path, good: dict[str, str], codec: Codec
) -> None:
    rows = rows_of(output)
    assert rows.keys() == good.keys()
    lengths = set()
    for name, row in rows.items():
        (recording,) = (mixed / "wavs").glob(f"{name}.*")
        expected = codes_alone(codec, recording)
        assert [len(level) for level in row["snac_codes"]] == [len(level) for level in expected]
        assert row["snac_codes"] == expected
        lengths.add(len(expected[0]))
    assert len(lengths) > 1  # else nothing was batched beside clips of another length


def test_texts_and_speakers_are_those_of_the_metadata(output: Path, good: dict[str, str]) -> None:
    for name, row in rows_of(output).items():
        fields = good[name].split("|")
        assert row["text"] == (fields[2] if len(fields) > 2 else fields[1])
        assert row["speaker"] == (fields[3] if len(fields) > 3 else None)


def test_n_samples_is_the_true_length(output: Path, mixed: Path) -> None:
    for name, row in rows_of(output).items():
        (recording,) = (mixed / "wavs").glob(f"{name}.*")
        info = soundfile.info(recording)
        expected = math.ceil(info.frames * 24000 / info.samplerate)
        # ffmpeg does not trim a short Vorbis stream to the sample.
        tolerance = 24000 * 512 // info.samplerate if recording.suffix == ".ogg" else 0
        assert abs(row["n_samples"] - expected) <= tolerance
        frames = len(row["snac_codes"][0])
        assert (frames - 1) * 2048 < row["n_samples"] <= frames * 2048


def test_the_report_accounts_for_every_row(output: Path, mixed: Path, good: dict[str, str]) -> None:
    report = json.loads((output / "report.json").read_text("utf-8"))
    lines = (mixed / "metadata.csv").read_text("utf-8").splitlines()
    rejects = {reason: set(entry["ids"]) for reason, entry in report["rejects"].items()}
    assert rejects == REJECTS
    for reason, entry in report["rejects"].items():
        assert entry["rows"] == len(entry["ids"]) == len(REJECTS[reason])
        for example in entry["examples"]:
            number = int(example.split(":")[1])
            assert lines[number - 1].split("|")[0] in REJECTS[reason]
    assert report["rows_in"] == len(lines)
    assert report["rows_out"] == report["utterances"] == len(good)
    assert report["rows_in"] == report["rows_out"] + sum(
        entry["rows"] for entry in report["rejects"].values()
    )
    samples = sum(row["n_samples"] for row in rows_of(output).values())
    assert report["hours"] == pytest.approx(samples / 24000 / 3600, abs=1e-6)


def test_rejected_rows_are_kept_with_their_reason(output: Path) -> None:
    rejected = pq.read_table(str(output / "rows" / "status=rejected")).to_pylist()
    found: dict[str, set[str]] = {}
    for row in rejected:
        found.setdefault(row["reason"], set()).add(row["id"])
        assert row["snac_codes"] is None
        assert row["detail"]
    assert found == REJECTS


def test_parquet_columns_have_the_documented_types(output: Path) -> None:
    files = list((output / "rows" / "status=encoded").glob("*.parquet"))
    assert files
    for file in files:
        schema = pq.ParquetFile(file).schema_arrow
        for name in ("id", "text", "speaker"):
            assert schema.field(name).type == pa.string()
        assert schema.field("n_samples").type == pa.int64()
        assert schema.field("snac_codes").type == pa.list_(pa.list_(pa.int16()))


def test_dataset_json_describes_the_codec(output: Path) -> None:
    described = json.loads((output / "dataset.json").read_text("utf-8"))
    assert described == {
        "format_version": 2,
        "sample_rate": 24000,
        "codec": {
            "source": str(CODEC),
            "sha256": hashlib.sha256((CODEC / "pytorch_model.bin").read_bytes()).hexdigest(),
            "config": json.loads((CODEC / "config.json").read_text("utf-8")),
            "embedded": True,
        },
        "normalizer": [],
        "tags": [],
    }
    assert read_info(str(output)).codec.strides == (4, 2, 1)


def test_the_embedded_codec_is_the_codec(output: Path, mixed: Path) -> None:
    embedded = load_codec(str(output / "codec"))
    name, row = next(iter(rows_of(output).items()))
    (recording,) = (mixed / "wavs").glob(f"{name}.*")
    assert codes_alone(embedded, recording) == row["snac_codes"]


def test_the_folder_holds_nothing_else(output: Path) -> None:
    names = {path.name for path in output.iterdir()}
    assert names == {"rows", "run.json", "report.json", "report.html", "dataset.json", "codec"}
    assert {path.name for path in output.parent.iterdir()} == {"codes", "lines"}


def test_jsonl_lines_equal_the_rows(output: Path) -> None:
    text = (output.parent / "lines" / "codes.jsonl").read_text("utf-8")
    assert "Åsa" not in text  # the speaker is not among the keys
    lines = [json.loads(line) for line in text.splitlines()]
    rows = [
        {"text": row["text"], "snac_codes": row["snac_codes"]} for row in rows_of(output).values()
    ]
    assert sorted(lines, key=json.dumps) == sorted(rows, key=json.dumps)


def test_training_reads_the_folder_and_the_lines_alike(output: Path) -> None:
    rows = sorted(rows_of(output).values(), key=lambda row: str(row["text"]))
    for location in (output, output.parent / "lines" / "codes.jsonl"):
        read = read_utterances(str(location), LAYOUT)
        assert not read.dropped
        order = sorted(range(len(read)), key=lambda index: read.texts[index])
        assert [read.texts[index] for index in order] == [row["text"] for row in rows]
        for index, row in zip(order, rows, strict=True):
            codes = [level.tolist() for level in LAYOUT.deinterleave(read.codes(index))]
            assert codes == row["snac_codes"]


# Other runs


def test_a_clean_corpus_has_no_rejects(encoded: Path, corpus: Path, codec: Codec) -> None:
    report = json.loads((encoded / "report.json").read_text("utf-8"))
    assert report["rejects"] == {}
    rows = rows_of(encoded)
    assert len(rows) == report["rows_in"] == report["rows_out"] == 16
    for name, row in rows.items():
        assert row["snac_codes"] == codes_alone(codec, corpus / "wavs" / f"{name}.flac")


def test_a_filled_output_is_refused_and_another_folder_has_every_shift(
    ray_cluster: None,
    mixed: Path,
    good: dict[str, str],
    codec: Codec,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = next(iter(good))
    manifest = tmp_path / "manifest.jsonl"
    shutil.copy(mixed / "wavs" / f"{name}.flac", tmp_path / "clip.flac")
    lines = [{"audio": "clip.flac", "text": "near"}, {"audio": "none.flac", "text": "nowhere"}]
    manifest.write_text("\n".join(json.dumps(line) for line in lines), "utf-8")
    target = tmp_path / "codes"
    (target / "rows" / "status=encoded").mkdir(parents=True)
    (target / "rows" / "status=encoded" / "old.parquet").write_bytes(b"old")
    (target / "dataset.json").write_text("{}", "utf-8")
    before = contents(target)
    argv = ["--input", str(manifest), "--output", str(target), "--codec", str(CODEC)]

    assert main(argv) == 2
    assert f"--output {target} is not empty" in capsys.readouterr().err
    assert contents(target) == before

    target = tmp_path / "another"
    argv[argv.index("--output") + 1] = str(target)
    with as_tasks(EncodeWorker):
        assert main([*argv, "--shifts", "3", "--num-workers", "1"]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 recordings encoded" in shown
    assert "rejected, missing: 1 (manifest.jsonl:2: " in shown
    assert read_info(str(target)).sample_rate == 24000
    report = json.loads((target / "report.json").read_text("utf-8"))
    assert report["rows_in"] == 2  # recordings
    assert (report["rows_out"], report["utterances"]) == (1, 3)
    assert report["rejects"]["missing"]["rows"] == 1
    rows = rows_of(target)
    assert rows.keys() == {"line-1", "line-1~1", "line-1~2"}
    samples = decode_audio((tmp_path / "clip.flac").read_bytes(), codec.sample_rate)
    wave = torch.from_numpy(from_pcm16(to_pcm16(samples)))
    # A frame of 2,048 samples times 0, 0.618 and 1.236, less the whole frames.
    for end, shift in (("", 0), ("~1", 1266), ("~2", 483)):
        moved = torch.cat([torch.zeros(shift), wave])
        row = rows["line-1" + end]
        assert row["snac_codes"] == [level.tolist() for level in codec.encode([moved])[0]]
        assert row["n_samples"] == len(moved)
        assert row["text"] == "near"


def test_only_bad_rows_fail_the_job(
    ray_cluster: None, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wavs").symlink_to(mixed / "wavs")
    (tmp_path / "in" / "metadata.csv").write_text("noise|one\nabsent|two\n", "utf-8")
    target = tmp_path / "codes"
    argv = ["--input", str(tmp_path / "in"), "--output", str(target), "--codec", str(CODEC)]
    with as_tasks(EncodeWorker):
        assert main([*argv, "--num-workers", "1"]) != 0
    assert "no recording could be encoded" in capsys.readouterr().err
    report = json.loads((target / "report.json").read_text("utf-8"))
    assert (report["rows_in"], report["rows_out"]) == (2, 0)
    assert set(report["rejects"]) == {"unreadable", "missing"}
    assert not (target / "dataset.json").exists()


def test_shifts_share_no_place_within_a_frame() -> None:
    shifts = shift_samples(16, 2048)
    assert shifts[0] == 0
    places = sorted(shifts)
    assert places[-1] < 2048
    assert min(later - sooner for sooner, later in itertools.pairwise(places)) > 2048 / 32
    latents = sorted(shift % 512 for shift in shifts)
    assert min(later - sooner for sooner, later in itertools.pairwise(latents)) > 0


def test_only_the_speakers_asked_for_are_encoded(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--input", str(corpus), "--output", str(tmp_path / "codes"), "--codec", str(CODEC)]
    assert main([*argv, "--speakers", "bf_alice", "--speakers", "nobody"]) == 2
    assert "--speakers nobody" in capsys.readouterr().err
    rows = read_rows(
        EncodeConfig(
            input=str(corpus),
            output=str(tmp_path / "codes"),
            codec=str(CODEC),
            speakers=["bf_alice"],
        )
    )
    assert rows["speaker"].to_pylist() == ["bf_alice"] * 4


# Refused before any work


def test_an_output_that_holds_the_input_is_refused(
    ray_cluster: None, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = tmp_path / "mine" / "recordings"
    (recordings / "wavs").mkdir(parents=True)
    shutil.copy(next((corpus / "wavs").iterdir()), recordings / "wavs" / "a.flac")
    (recordings / "metadata.csv").write_text("a|one\n", "utf-8")
    before = contents(recordings)
    for target in (recordings, recordings.parent):
        argv = ["--input", str(recordings), "--output", str(target), "--codec", str(CODEC)]
        assert main([*argv, "--num-workers", "1"]) == 2
        assert "--output" in capsys.readouterr().err
        assert contents(recordings) == before


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--input", "nowhere"), ("--codec", "./nowhere"), ("--output", "gopher://x")],
)
def test_a_location_that_is_wrong_is_named(
    flag: str, value: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--input": str(corpus), "--output": str(tmp_path / "codes"), "--codec": str(CODEC)}
    given[flag] = value
    assert main([word for pair in given.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jobs/encode.py: error: ")
    assert value.removeprefix("./") in error
    assert not (tmp_path / "codes").exists()
