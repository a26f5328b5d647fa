"""The demo's own part, without Ray: what it makes of the files that its jobs leave."""

import copy
import io
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml
from matplotlib.image import imread

from helpers.example import DIGITS, RATE, ROOT, load_script, read_clip, rows_of
from helpers.pages import Page, assert_self_contained
from sheen.audio.io import encode_audio
from sheen.scoring.speaker_id import ALL
from sheen.serve.config import ServeArgs

comparing = load_script(DIGITS / "demo_comparison.py")


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts that import their neighbours, as they are when run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DIGITS))
        return {name: load_script(DIGITS / f"{name}.py") for name in ("demo", "demo_report")}


# The table


def voice_result(errors: float, ended_with_eos: float, right: float | None) -> dict[str, Any]:
    """Of an evaluation's JSON, what the table shows."""
    return {
        "clips": 25,
        "wer": {"rate": errors, "low": errors / 2, "high": errors * 2, "units": 100},
        "ended_with_eos": {"rate": ended_with_eos, "low": 0.0, "high": 1.0, "count": 25, "of": 25},
        "speaker_accuracy": None if right is None else {"rate": right, "low": 0.0, "high": 1.0},
    }


def evaluation(untrained: Sequence[str], **voices: dict[str, Any]) -> dict[str, Any]:
    everybody = voice_result(0.1, 1.0, 1.0) | {"clips": 25 * len(voices)}
    return {
        "config": {"untrained_voices": list(untrained)},
        "asr": "an ASR",
        "seed": 0,
        "voices": {**voices, ALL: everybody},
    }


BEFORE = evaluation(
    ["kal16"],
    awb=voice_result(0.04, 1.0, None),
    kal16=voice_result(0.9, 0.48, 0.0),
    slt=voice_result(0.08, 0.996, 1.0),
)
AFTER = evaluation(
    [],
    awb=voice_result(0.05, 1.0, None),
    kal16=voice_result(0.1, 1.0, 1.0),
    slt=voice_result(0.09, 1.0, 1.0),
)


def test_the_table_shows_each_voice_before_and_after_and_the_new_one_first() -> None:
    header, rows = comparing.comparison(BEFORE, AFTER)
    assert header[:3] == ["voice", "WER, before", "WER, after"]
    assert [row[0] for row in rows] == ["kal16 (new)", "awb", "slt"]
    new, awb, slt = (dict(zip(header, row, strict=True)) for row in rows)
    assert (new["WER, before"], new["WER, after"]) == (
        "90.0% [45.0%, 180.0%]",
        "10.0% [5.0%, 20.0%]",
    )
    assert (new["ended with EOS, before"], new["ended with EOS, after"]) == ("48%", "100%")
    assert (new["speaker accuracy, before"], new["speaker accuracy, after"]) == ("0%", "100%")
    assert slt["WER, before"].startswith("8.0% ")
    assert awb["speaker accuracy, after"] == ""  # was not measured


def test_the_console_has_a_column_for_each_voice() -> None:
    header, rows = comparing.comparison(BEFORE, AFTER)
    lines = comparing.as_text(header, rows).split("\n")
    assert lines[0].split() == ["voice", "kal16", "(new)", "awb", "slt"]
    assert len(lines) == len(header)
    place = lines[0].index("awb")
    for line, cell in zip(lines, rows[1], strict=True):
        assert line[place - 1 : place + len(cell)].strip() == cell
        assert line == line.rstrip()


@pytest.mark.parametrize("fault", ["another voice", "other prompts"])
def test_evaluations_of_other_prompts_are_not_compared(fault: str) -> None:
    after = copy.deepcopy(AFTER)
    if fault == "another voice":
        del after["voices"]["slt"]
    else:
        after["voices"]["slt"]["clips"] = 24
    with pytest.raises(ValueError, match="cannot be compared"):
        comparing.comparison(BEFORE, after)


# The clips


def write_rows(folder: Path, per_voice: int) -> None:
    """Rows of an evaluation, in files whose names are not in the order of the list."""
    (folder / "rows").mkdir(parents=True)
    rows = [
        {
            "key": key,
            "id": f"{voice}-{place}",
            "text": f"text {place}",
            "speaker": voice,
            "audio": {"bytes": f"{voice} {place}".encode(), "path": "a.flac"},
        }
        for key, (voice, place) in enumerate(
            (voice, place) for voice in ("slt", "kal16") for place in range(per_voice)
        )
    ]
    for name, part in (("b", rows[::2]), ("a", rows[1::2])):
        pq.write_table(pa.Table.from_pylist(part), folder / "rows" / f"{name}.parquet")


def test_clips_are_from_the_middle_and_near_the_end_of_each_voices_list(tmp_path: Path) -> None:
    write_rows(tmp_path, 25)
    clips = comparing.choose_clips(tmp_path)
    assert [clip.id for clip in clips] == ["slt-12", "slt-21", "kal16-12", "kal16-21"]
    assert clips[3] == comparing.BaseClip("kal16-21", "text 21", "kal16", b"kal16 21")


def test_of_a_single_prompt_there_is_one_clip(tmp_path: Path) -> None:
    write_rows(tmp_path, 1)
    assert [clip.id for clip in comparing.choose_clips(tmp_path)] == ["slt-0", "kal16-0"]


# What is served


def test_the_served_config_is_the_committed_one_with_the_demos_checkpoint(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = scripts["demo"]
    monkeypatch.setattr(demo, "RUN", tmp_path)
    path = demo._serve_config(tmp_path / "checkpoint")
    assert path.parent == tmp_path
    written = yaml.safe_load(path.read_text("utf-8"))
    arguments = written["applications"][0]["args"]
    assert ServeArgs.model_validate(arguments).model == str(tmp_path / "checkpoint")
    committed = yaml.safe_load((ROOT / "serve_config.yaml").read_text("utf-8"))
    arguments["model"] = committed["applications"][0]["args"]["model"]
    assert written == committed
    # The port on which the demo waits is the one on which Serve will answer.
    assert written["http_options"]["port"] == demo.PORT


def test_the_demo_mixes_in_the_rows_that_its_config_names(scripts: dict[str, ModuleType]) -> None:
    config = yaml.safe_load((DIGITS / "train.yaml").read_text("utf-8"))
    assert config["data"][1:] == [scripts["demo"].OLD_VOICES]
    assert (ROOT / scripts["demo"].OLD_VOICES).is_file()


# The page


@pytest.fixture(scope="module")
def reported(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two strings: the base speaks as recorded, the demo is silent."""
    folder = tmp_path_factory.mktemp("run")
    for part, content in (
        ("codes/report.json", {"rows_in": 200, "rows_out": 200, "utterances": 800, "hours": 0.2}),
        ("train/metrics.jsonl", {"over_length_limit": 0}),
    ):
        (folder / part).parent.mkdir()
        content |= {"audio_seconds_per_second": 12.5}
        content |= {"length_histogram": {"tokens": [10.0, 20.0, 30.0], "utterances": [2, 3]}}
        (folder / part).write_text(json.dumps(content) + "\n", "utf-8")
    with (folder / "train" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step in (10, 20):
            line = {"step": step, "loss": 3.0, "loss_level_0": 2.0, "eval_loss": 3.1}
            file.write(json.dumps(line | {"target_tokens_per_second": 2400.0}) + "\n")
    clips, requests = [], []
    for voice in ("slt", "kal16"):
        name, text, *_ = rows_of("heldout", voice)[40]
        recording = read_clip("heldout", name)
        clips.append(comparing.BaseClip(name, text, voice, encode_audio(recording, RATE, "FLAC")))
        wav = folder / f"{voice}.wav"
        soundfile.write(wav, 0 * recording, RATE, "PCM_16")
        requests.append(scripts["demo_report"].Spoken(text, voice, wav, 0.25, 1.5))
    images = scripts["demo_report"].write_report(
        folder, BEFORE, AFTER, clips, (requests, requests), {"train": 100.0}
    )
    assert images == [folder / f"{clip.id}.png" for clip in reversed(clips)]
    return folder


def test_the_page_plays_each_string_four_times_and_shows_the_transcripts(reported: Path) -> None:
    html = (reported / "report.html").read_text("utf-8")
    assert_self_contained(html)
    page = Page(html)
    assert len(page.attributes("src", "audio")) == 2 * 4
    for voice in ("slt", "kal16"):
        name, text, *_ = rows_of("heldout", voice)[40]
        assert f"{voice}: {text} ({name})" in page.text
    assert page.text.count("transcript: nothing") == 2
    assert "kal16 (new)" in page.text
    assert "an ASR" in page.text


def test_the_images_show_four_clips_one_above_the_other(reported: Path) -> None:
    images = list(reported.glob("*.png"))
    assert len(images) == 2
    for path in images:
        image = imread(io.BytesIO(path.read_bytes()))
        assert image.shape[1] == 640
        assert image.shape[0] % 4 == 0
        assert image.shape[0] > 1600


def test_a_demo_that_cannot_start_keeps_the_last_report(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = tmp_path / "report.html"
    report.write_text("the last run's", "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(scripts["demo"], "RUN", tmp_path)
        monkeypatch.setattr(scripts["demo"], "PORT", port)
        assert scripts["demo"].main() == 1
    assert f"port {port} is in use" in capsys.readouterr().err
    assert report.read_text("utf-8") == "the last run's"
