"""Where the voice is found that speaks when no model is named."""

import filecmp
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sheen
from helpers.example import CHECKPOINT, ENGLISH, ROOT, VOICE
from sheen.__main__ import main
from sheen.lm.checkpoint import ENGLISH_VOICE
from sheen.lm.default_voice import find_default_voice


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python imports from, of an installation without a checkout."""
    monkeypatch.setattr("sheen.lm.default_voice.CHECKOUT", tmp_path / "installed")
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
    assert find_default_voice() == str(voice)


@pytest.mark.slow
def test_the_wheel_brings_it_with_its_card_and_licence(tmp_path: Path) -> None:
    dist, site, uv = tmp_path / "dist", tmp_path / "site", [sys.executable, "-m", "uv"]
    # Of uv's cache: whoever installed Sheen from the checkout has what builds it.
    for project in (ROOT, ENGLISH / "package"):
        build = [*uv, "build", "--offline", "--quiet", "--wheel", "--out-dir", dist, project]
        subprocess.run(build, check=True)
    install = [*uv, "pip", "install", "--offline", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*install, "--python", sys.executable, *dist.glob("*.whl")], check=True)
    code = (
        "import sheen, sheen.lm.default_voice as v; print(sheen.__file__, v.find_default_voice())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    )
    # Templates, the page's parts, and py.typed, without which its annotations count for nobody.
    assert (site / "sheen" / "py.typed").is_file()
    for path in (ROOT / "sheen").rglob("*"):
        if path.is_file() and path.parent.name != "__pycache__":
            assert filecmp.cmp(path, site / path.relative_to(ROOT), shallow=False)
    voice = site / "sheen_voice_english" / "voice"
    assert found.stdout.split() == [str(site / "sheen" / "__init__.py"), str(voice)]
    for path in CHECKPOINT.rglob("*"):
        assert path.is_dir() or filecmp.cmp(
            path, voice / path.relative_to(CHECKPOINT), shallow=False
        )
    (metadata,) = site.glob("sheen_voice_english-*.dist-info")
    assert (metadata / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert (CHECKPOINT / "README.md").read_text("utf-8") in (metadata / "METADATA").read_text(
        "utf-8"
    )


def test_a_checkouts_own_voice_comes_before_an_installed_one(
    checkpoint: Path, elsewhere: Path, tmp_path: Path
) -> None:
    packaged(checkpoint, elsewhere)
    shutil.copytree(checkpoint, own := tmp_path / "installed" / ENGLISH_VOICE)
    assert find_default_voice() == str(own)


@pytest.mark.slow
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
    assert "make wheel" in message
    assert "pip install dist/sheen_voice_english-*.whl" in message
