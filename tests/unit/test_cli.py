"""The `sheen` command, `sheen speak`, and checkpoints that must not be opened. No Ray."""

import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

import sheen.__main__
from helpers.example import VOICE, VOICES
from helpers.readers import check_speech
from helpers.speaking import WAIT_S, assert_close, speak
from sheen.__main__ import COMMANDS, main
from sheen.audio.io import to_pcm16
from sheen.codec.info import WEIGHTS_FILE
from sheen.engine.engine import Engine
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice, load_voice
from sheen.lm.checkpoint import ENGLISH_VOICE


@pytest.fixture
def damaged(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


# sheen


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE)
    assert listed == list(COMMANDS)
    jobs = {"prepare", "encode", "train", "train-codec", "evaluate"}
    assert {"speak", *jobs, "serve", "convert"} <= {*listed}


def test_importing_sheen_and_asking_for_help_load_neither_torch_nor_ray() -> None:
    code = """
import sys
import sheen
from sheen.__main__ import main
assert main(["--help"]) == 0
print({"torch", "ray", "transformers", "numpy", "pydantic", "fastapi"} & {*sys.modules} or "none")
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "none"


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sheen {sheen.__version__}\n"


@pytest.mark.parametrize(
    "words", [["four two", "--model", "a folder"], ["--model", "a folder", "four two"]]
)
def test_the_form_without_a_command_is_refused_and_names_the_new_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert f"sheen speak {shlex.join(words)}" in capsys.readouterr().err


def test_an_unknown_command_is_refused_and_the_known_ones_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["speek"]) == 2
    message = capsys.readouterr().err
    assert "'speek'" in message
    assert ", ".join(COMMANDS) in message


@pytest.mark.parametrize("name", ["prepare", "encode", "train", "train-codec", "evaluate"])
def test_a_job_command_says_its_own_name_in_errors(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name, "--ouptut", "x"]) == 2
    assert capsys.readouterr().err.startswith(f"sheen {name}: error: unknown flag --ouptut")


# sheen speak


def test_a_text_from_standard_input_is_spoken_in_the_format_of_the_files_ending(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.flac"
    monkeypatch.setattr(sys, "stdin", io.StringIO("four two\n"))
    command = ["speak", "-", "--model", str(checkpoint), "--voice", VOICE, "--output", str(path)]
    assert main([*command, "--max-seconds", "0.5"]) == 0
    assert soundfile.info(path).format == "FLAC"
    assert soundfile.info(path).duration > 0.3


def test_an_output_of_an_unknown_format_is_refused_before_the_model_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    message = refusal(capsys, "four", "--model", str(tmp_path), "-o", "out.txt")
    assert "out.txt" in message
    assert ".flac" in message


@pytest.mark.slow
def test_the_command_writes_what_the_engine_speaks(
    checkpoint: Path, voice: Voice, tmp_path: Path
) -> None:
    path = tmp_path / "out.wav"
    command = ["four two", "--model", str(checkpoint), "--voice", VOICE, "-o", str(path)]
    command += ["--seed", "7", "--max-seconds", "1"]
    result = subprocess.run(
        [sys.executable, "-m", "sheen", "speak", *command],
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
    request = voice.request("four two", VOICE, Sampling(seed=7), 1.0)
    samples, _ = speak(engine, request)
    engine.close()
    assert len(samples)
    assert_close(soundfile.read(path, dtype="int16")[0], to_pcm16(samples))
    check_speech("wav", path.read_bytes(), len(samples), True, tmp_path)


def test_a_text_without_a_word_is_a_moment_of_silence(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    assert (
        main(["speak", "--model", str(checkpoint), "--voice", VOICE, "-o", str(path), "😀 ```"])
        == 0
    )
    samples, rate = soundfile.read(path)
    assert len(samples) == 0.2 * rate
    assert not samples.any()


@pytest.mark.slow
def test_a_text_is_spoken_in_the_voice_of_a_recording(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording, path = str(tmp_path / "spoken.wav"), str(tmp_path / "out.wav")
    model = ["--model", str(checkpoint), "--max-seconds", "1.3"]
    words = "four two seven four two seven"
    assert main(["speak", words, *model, "--voice", VOICE, "-o", recording]) == 0
    command = ["four", *model, "-o", path, "--reference", recording]
    capsys.readouterr()
    assert "give both, or neither" in refusal(capsys, *command)
    command += ["--reference-text", words]
    assert "was not trained" in refusal(capsys, *command)
    assert main(["speak", *command, "--reference-form", "one-turn"]) == 0
    assert soundfile.info(path).duration > 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says when it refuses, after any progress bar: one line."""
    assert main(["speak", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    message = captured.err[captured.err.index("sheen speak: error: ") :]
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
    assert "sheen train" in message
    assert ENGLISH_VOICE in message


def test_an_unknown_voice_lists_the_known_ones(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    message = refusal(capsys, "four two", "--model", str(checkpoint), "--voice", "nobody")
    assert "nobody" in message
    assert ", ".join(sorted(VOICES)) in message


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", " \t\n", "\u2003"])
def test_a_text_without_words_is_refused(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, text: str
) -> None:
    message = refusal(capsys, text, "--model", str(checkpoint), "--voice", VOICE)
    assert "the text is empty" in message


def test_an_output_that_cannot_be_written_is_named(
    capsys: pytest.CaptureFixture[str], checkpoint: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "missing" / "out.wav")
    arguments = ("four", "--model", str(checkpoint), "--voice", VOICE, "--max-seconds", "0.1")
    assert path in refusal(capsys, *arguments, "-o", path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-seconds", "inf"], "max_seconds inf: expected"),
        (["-o", "folder.wav"], "output folder.wav: it is a folder"),
        (["--repetition-window", "some"], "--repetition-window: 'some': expected a number"),
    ],
)
def test_a_flag_that_cannot_be_followed_is_named_before_the_model_is_opened(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.wav").mkdir()
    status: Any = None
    try:
        status = main(["speak", "four", "--model", "missing", *arguments])
    except SystemExit as ended:  # argparse's
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_an_output_may_be_named_from_the_home_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    message = refusal(capsys, "four", "--model", "/missing", "--output=~/out.wav")
    assert "no folder" not in message
    assert "/missing" in message


def test_a_text_from_standard_input_that_is_not_utf8_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = io.TextIOWrapper(io.BytesIO(b"Gr\xfc\xdfe"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", given)
    message = refusal(capsys, "-", "--model", "missing")
    assert "the text from standard input: 'utf-8' codec can't decode" in message


# Checkpoints that must not be opened


def test_a_checkpoint_of_an_older_format_is_refused_with_the_command_that_converts_it(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    (damaged / "sheen.json").write_text('{"format_version": 1}', "utf-8")
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", VOICE)
    assert f"`sheen convert {damaged}`" in message


def test_another_normalization_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    path = damaged / "sheen.json"
    info: dict[str, Any] = json.loads(path.read_text("utf-8"))
    step = {"name": "nemo_text_processing", "version": "0.9", "language": "en"}
    info["normalizer"].insert(0, step)
    path.write_text(json.dumps(info), "utf-8")
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", VOICE)
    assert str(damaged) in message
    assert "normalized by nemo_text_processing 0.9" in message


def test_half_a_record_of_a_checkpoint_is_named(
    capsys: pytest.CaptureFixture[str], damaged: Path
) -> None:
    path = damaged / "sheen.json"
    path.write_bytes(path.read_bytes()[:100])
    assert str(path) in refusal(capsys, "four two", "--model", str(damaged), "--voice", VOICE)


def test_another_codec_is_refused(capsys: pytest.CaptureFixture[str], damaged: Path) -> None:
    path = damaged / "codec" / WEIGHTS_FILE
    state = torch.load(path, weights_only=True)
    name = next(iter(state))
    state[name] = state[name] + 1.0
    torch.save(state, path)
    message = refusal(capsys, "four two", "--model", str(damaged), "--voice", VOICE)
    assert str(damaged / "codec") in message
    assert "weights" in message


def test_a_checkpoint_opens_from_a_uri(checkpoint: Path, voice: Voice) -> None:
    opened = load_voice(checkpoint.as_uri())
    assert opened.info == voice.info
    assert torch.equal(opened.model.head, voice.model.head)
