"""`sheen speak`, and checkpoints that must not be opened. No Ray Serve."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import sheen.__main__
from helpers.readers import check_speech
from helpers.speaking import WAIT_S, assert_close, speak
from sheen.__main__ import main
from sheen.audio.io import to_pcm16
from sheen.codec.info import WEIGHTS_FILE
from sheen.engine.engine import Engine
from sheen.engine.sampler import Sampling
from sheen.engine.voice import Voice, load_voice


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "checkpoint"


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


# sheen speak


def test_it_writes_what_the_engine_speaks(checkpoint: Path, voice: Voice, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    command = ["four two", "--model", str(checkpoint), "--voice", "slt", "-o", str(path)]
    result = subprocess.run(
        [sys.executable, "-m", "sheen", "speak", *command, "--seed", "7", "--max-seconds", "1"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert str(path) in result.stdout
    info = soundfile.info(path)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    assert (info.samplerate, info.channels) == (24_000, 1)

    engine = Engine(voice.model, voice.codec)
    request = voice.request("four two", "slt", Sampling(seed=7), 1.0)
    samples, _ = speak(engine, request)
    engine.close()
    assert len(samples)
    assert_close(soundfile.read(path, dtype="int16")[0], to_pcm16(samples))
    check_speech("wav", path.read_bytes(), len(samples), True, tmp_path)


def test_a_text_without_a_word_is_a_moment_of_silence(
    checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "out.wav"
    assert main(["speak", "--model", str(checkpoint), "--voice", "slt", "-o", str(path), "😀 ```"]) == 0
    samples, rate = soundfile.read(path)
    assert len(samples) == 0.2 * rate
    assert not samples.any()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says when it refuses, after any progress bar: one line."""
    assert main(["speak", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    start = captured.err.index("sheen speak: error: ")
    # Ray, which other tests started in this process, prints its actors' lines when it likes.
    lines = captured.err[start:].splitlines(keepends=True)
    message = "".join(line for line in lines if not line.startswith("\x1b[36m("))
    assert message.endswith("\n")
    assert message.count("\n") == 1
    return message


def test_a_refusal_is_the_processs_exit_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["sheen", "speak", "four two", "--model", str(tmp_path)])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(sheen.__main__.__file__, run_name="__main__")
    assert exit_info.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("uri", [False, True])
def test_a_missing_model_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, uri: bool
) -> None:
    missing = tmp_path / "nothing"
    location = missing.as_uri() if uri else str(missing)
    assert location in refusal(capsys, "four two", "--model", location)


def test_a_folder_that_is_no_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = refusal(capsys, "four two", "--model", str(tmp_path))
    assert str(tmp_path / "sheen.json") in message
    assert "jobs/train.py" in message
    assert "examples/digits/voice" in message


def test_an_unknown_voice_lists_the_known_ones(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    message = refusal(capsys, "four two", "--model", str(checkpoint), "--voice", "nobody")
    assert "nobody" in message
    assert "awb, kal16, rms, slt" in message


@pytest.mark.parametrize("text", ["", " \t\n", "\u2003"])
def test_a_text_without_words_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str
) -> None:
    message = refusal(capsys, text, "--model", str(checkpoint), "--voice", "slt")
    assert "the text is empty" in message


def test_an_output_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "missing" / "out.wav")
    arguments = ("four", "--model", str(checkpoint), "--voice", "slt", "--max-seconds", "0.1")
    assert path in refusal(capsys, *arguments, "-o", path)


# Checkpoints that must not be opened


def test_a_checkpoint_of_an_older_format_is_refused_with_the_command_that_converts_it(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    (damaged / "sheen.json").write_text('{"format_version": 1}', "utf-8")
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")
    assert f"`sheen convert {damaged}`" in message


def test_another_normalisation_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    path = damaged / "sheen.json"
    info: dict[str, Any] = json.loads(path.read_text("utf-8"))
    step = {"name": "nemo_text_processing", "version": "0.9", "language": "en"}
    info["normalizer"].insert(0, step)
    path.write_text(json.dumps(info), "utf-8")
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")
    assert str(damaged) in message
    assert "normalised by nemo_text_processing 0.9" in message


def test_half_a_record_is_named(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    path = damaged / "sheen.json"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")


def test_another_codec_is_refused(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    path = damaged / "codec" / WEIGHTS_FILE
    state = torch.load(path, weights_only=True)
    name = next(iter(state))
    state[name] = state[name] + 1.0
    torch.save(state, path)
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", "slt")
    assert str(damaged / "codec") in message
    assert "weights" in message


def test_a_checkpoint_opens_from_a_uri(checkpoint: Path, voice: Voice) -> None:
    opened = load_voice(checkpoint.as_uri())
    assert opened.info == voice.info
    assert torch.equal(opened.model.head, voice.model.head)
