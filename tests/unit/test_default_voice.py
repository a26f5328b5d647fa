"""Where the voice is found that speaks when no model is named."""

import importlib
import shutil
from pathlib import Path

import pytest

import sheen
from helpers.example import VOICE
from sheen import default_voice
from sheen.__main__ import main
from sheen.lm.checkpoint import ENGLISH_VOICE


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, of an installation without a checkout."""
    monkeypatch.setattr(default_voice, "CHECKOUT", tmp_path / "installed")
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def packaged(checkpoint: Path, elsewhere: Path) -> Path:
    """The folder that the wheel sheen-voice-english installs."""
    voice = elsewhere / "sheen_voice_english" / "voice"
    shutil.copytree(checkpoint, voice)
    importlib.invalidate_caches()
    return voice


def test_outside_a_checkout_the_default_voice_is_the_installed_packages(
    checkpoint: Path, elsewhere: Path
) -> None:
    voice = packaged(checkpoint, elsewhere)
    assert default_voice.find_default_voice() == str(voice)


def test_a_checkouts_own_voice_comes_before_an_installed_one(
    checkpoint: Path, elsewhere: Path, tmp_path: Path
) -> None:
    packaged(checkpoint, elsewhere)
    shutil.copytree(checkpoint, own := tmp_path / "installed" / ENGLISH_VOICE)
    assert default_voice.find_default_voice() == str(own)


def test_speak_and_load_use_the_default_voice(
    checkpoint: Path, elsewhere: Path, tmp_path: Path
) -> None:
    packaged(checkpoint, elsewhere)
    with sheen.load(device="cpu") as speaker:
        assert VOICE in speaker.voices
    words = ["Good morning.", "--voice", VOICE, "--max-seconds", "1"]
    assert main(["speak", *words, "-o", str(tmp_path / "out.wav")]) == 0
    assert (tmp_path / "out.wav").stat().st_size > 44


@pytest.mark.usefixtures("elsewhere")
def test_without_a_default_voice_both_ways_to_one_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["speak", "Good morning."]) == 2
    message = capsys.readouterr().err
    assert "sheen train" in message
    assert ENGLISH_VOICE in message
    assert "pip install sheen-voice-english" in message
