"""The demo's own part, without Ray: what it makes of the files that its jobs leave."""

import io
import socket
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import yaml
from matplotlib.image import imread

from helpers.demo_runs import AFTER, BEFORE, write_run
from helpers.example import DIGITS, RATE, ROOT, load_script
from helpers.pages import Page, assert_self_contained
from helpers.spoken_digits import read_digits, rows_of
from sheen.audio.io import encode_audio


@pytest.fixture(scope="module")
def scripts() -> dict[str, ModuleType]:
    """The scripts that import their neighbours, as they are when run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DIGITS))
        return {name: load_script(DIGITS / f"{name}.py") for name in ("demo", "demo_report")}


# The rows of the old voices


def test_the_demo_mixes_in_the_rows_that_its_config_names(scripts: dict[str, ModuleType]) -> None:
    config = yaml.safe_load((DIGITS / "train.yaml").read_text("utf-8"))
    assert config["data"][1:] == [scripts["demo"].OLD_VOICES]
    assert (ROOT / scripts["demo"].OLD_VOICES).is_file()


# The page


@pytest.fixture(scope="module")
def reported(scripts: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two strings: the base speaks as recorded, the demo is silent."""
    folder, spoken = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("heldout")
    write_run(folder)
    (spoken / "wavs").mkdir()
    clips, requests = [], []
    for voice in ("slt", "kal16"):
        name, text, *_ = rows_of(voice)[-1]
        recording = read_digits(name)
        audio = encode_audio(recording, RATE, "FLAC")
        (spoken / "wavs" / f"{name}.flac").write_bytes(audio)
        clips.append(scripts["demo_report"].SpokenClip(name, text, voice, audio, None))
        wav = folder / f"{voice}.wav"
        soundfile.write(wav, 0 * recording, RATE, "PCM_16")
        requests.append(scripts["demo_report"].Spoken(text, voice, wav, 0.25, 1.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts["demo_report"], "HELDOUT", spoken)
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
        name, text, *_ = rows_of(voice)[-1]
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
