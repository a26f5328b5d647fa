"""`sheen inspect`: what is said of a checkpoint, measured, and where it is written."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest

from helpers import orpheus
from helpers.example import CHECKPOINT, CODEC
from sheen.__main__ import main
from sheen.engine.voice import load_voice
from sheen.inspection import measure
from sheen.lm.checkpoint import read_info
from sheen.serve.config import checkpoint_location

Made = Callable[[str, Callable[[Path], None]], Path]


@pytest.fixture
def folder(made_once: Made, tmp_path: Path) -> Path:
    """One of the user's own, which links the files."""
    made = made_once("vyvo-qwen3", lambda folder: orpheus.save(folder, "vyvo-qwen3"))
    own = tmp_path / "model"
    own.mkdir()
    for path in made.iterdir():
        (own / path.name).symlink_to(path)
    return own


def inspect(*words: object) -> int:
    return main(["inspect", *map(str, words), "--codec", str(CODEC), "--no-measure"])


@pytest.mark.slow
def test_a_record_goes_beside_the_weights_of_a_folder_of_ones_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(folder, "--voices", "zoe", "ann") == 0
    said = capsys.readouterr().out
    assert "layout: orpheus, 7 x 4,096 codes per frame, first id 300, start 301, end 302" in said
    assert "prompt form: vyvo-qwen3" in said
    info = read_info(folder)
    assert info.voices == ["zoe", "ann"]
    assert set(info.duration_model) == {"ann", "zoe"}
    # From now on it is a checkpoint like any other, and is not written again.
    assert load_voice(str(folder)).info == info
    capsys.readouterr()
    assert inspect(folder) == 0
    assert "only printed, sheen.json exists: give --output FILE" in capsys.readouterr().err
    assert read_info(folder) == info


@pytest.mark.slow
def test_a_hub_cache_is_never_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    assert inspect(folder) == 0
    assert "only printed, no file is named: give --output FILE" in capsys.readouterr().err
    assert inspect(folder, "--output", folder / "record.json") == 2
    assert "in the hub's cache; give a file elsewhere" in capsys.readouterr().err
    assert not list(folder.glob("*sheen*")) + list(folder.glob("record*"))
    target = folder.parent / "record.json"
    assert inspect(folder, "--voices", "--output", target) == 0
    found = load_voice(str(folder), info=str(target)).info
    assert (found.prompt.name, found.voices, list(found.duration_model)) == ("vyvo-qwen3", [], [""])
    assert inspect(folder, "--output", target) == 2
    assert "the file exists" in capsys.readouterr().err


@pytest.mark.slow
def test_a_hub_id_is_opened_from_the_hubs_cache(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the server, the command line and evaluation name it; offline, as it lies in the cache."""
    cache = tmp_path / "cache"
    snapshot = cache / "models--someone--voice" / "snapshots" / "rev"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (cache / "models--someone--voice" / "refs").mkdir()
    (cache / "models--someone--voice" / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    assert checkpoint_location("someone/voice") == "someone/voice"
    voice = load_voice("someone/voice", codec=str(CODEC))
    assert voice.info.prompt.name == "vyvo-qwen3"
    assert inspect("someone/voice") == 0
    assert not (snapshot / "sheen.json").exists()
    for name in ("someone/other", "no-such/folder"):
        with pytest.raises(ValueError, match=f"{name}.*no such folder here, and the hub did not"):
            checkpoint_location(name)
        assert inspect(name) == 2
    assert "the hub did not give it" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused_in_one_line(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert inspect(base, "--output", tmp_path / "x.json") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is not a Sheen checkpoint" in said


def test_a_device_that_is_not_there_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for device in ("nonsense", "cuda:99"):
        assert inspect(CHECKPOINT, "--device", device, "--output", tmp_path / "x.json") == 2
        assert f"error: device '{device}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"Good morning.\nCaf\xe9.\n", "line 2 is not UTF-8"),
        ("Hello.\n".encode("utf-16"), "UTF-16"),
        (b"\n \n", "expected a text a line"),
        (None, ""),
    ],
)
def test_texts_that_cannot_be_read_are_named_with_their_file(
    tmp_path: Path, data: bytes | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.txt"
    if data is not None:
        path.write_bytes(data)
    assert inspect(CHECKPOINT, "--texts", path) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(path) in said
    assert message in said


@pytest.mark.slow
def test_pace_is_measured_from_speech_that_ended_by_itself() -> None:
    voice = load_voice(str(CHECKPOINT))
    texts = (
        "Yes.",
        "Good morning.",
        "There is a small bakery.",
        "They bought an old house near the river.",
    )
    found, lines = measure(voice, texts)
    for name in voice.info.voices:
        known, line = voice.info.duration_model[name], found[name]
        for text in texts[1:]:
            expected = known.base_frames + known.frames_per_char * len(text)
            measured = line.base_frames + line.frames_per_char * len(text)
            assert measured == pytest.approx(expected, rel=0.6)
    assert all("characters per second" in line for line in lines)
    none, lines = measure(voice, texts[:1])
    assert none == voice.info.duration_model
    assert all("too few to measure" in line for line in lines)
