"""Trackers: what each library's own files say afterwards, and that none stops a run."""

import io
import json
import logging
import os
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sheen.audio.io import decode_audio
from sheen.train.tracking import TRACKERS, Trackers, check_trackers, open_trackers

RATE = 8000
STEP_OF_PCM = 1 / 32767
FIELDS = {"learning_rate": 2e-4, "trackers": ["tensorboard"], "model": None}


def tone(samples: int = 400) -> NDArray[np.float32]:
    return (0.5 * np.sin(np.arange(samples) / 5)).astype(np.float32)


def picture() -> tuple[NDArray[np.uint8], bytes]:
    """Pixels, and the PNG of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return pixels, file.getvalue()


def start(name: str, output: Path | str, first_step: int = 0) -> Trackers:
    return open_trackers([name], str(output), FIELDS, first_step)


def wait_for_the_next_second() -> None:
    """TensorBoard sorts files by it, those of one second by numbers of which 10 comes before 9."""
    second = int(time.time())
    while int(time.time()) == second:
        time.sleep(0.01)


def restart(name: str, output: Path | str, first_step: int) -> Trackers:
    """As `start`, in another second: no run restarts faster."""
    wait_for_the_next_second()
    return start(name, output, first_step)


def events(output: Path) -> EventAccumulator:
    """What TensorBoard shows of the run: all of it, by the reader behind its pages."""
    accumulator = EventAccumulator(
        str(output / "tensorboard"), {"scalars": 0, "audio": 0, "images": 0}
    )
    return accumulator.Reload()


def curve(output: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values, sorted: files of one second are not always read in their order."""
    return sorted((event.step, event.value) for event in events(output).Scalars(name))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_tensorboard_shows_the_scalars_sounds_and_images_that_it_was_given(tmp_path: Path) -> None:
    pixels, png = picture()
    trackers = start("tensorboard", tmp_path)
    for step in (1, 2, 3):
        trackers.scalars(step, {"loss": 1 / 2**step, "eval/loss": float(step)})
    trackers.audio(2, "prompt 1", tone(), RATE)
    trackers.audio(3, "prompt 1", 4 * tone(), RATE)
    trackers.image(2, "prompt 1", png)
    trackers.close()

    shown = events(tmp_path)
    assert curve(tmp_path, "loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
    assert curve(tmp_path, "eval/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    sounds = shown.Audio("audio/prompt 1")
    assert [sound.step for sound in sounds] == [2, 3]
    assert [sound.sample_rate for sound in sounds] == [RATE, RATE]
    for sound, given in zip(sounds, (tone(), np.clip(4 * tone(), -1, 1)), strict=True):
        heard = decode_audio(sound.encoded_audio_string, RATE)
        np.testing.assert_allclose(heard, given, atol=2 * STEP_OF_PCM)
    (image,) = shown.Images("image/prompt 1")
    assert image.step == 2
    seen = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(seen, pixels)
    assert trackers.missed == Counter()


@pytest.mark.slow
def test_a_sync_of_trackers_leaves_nothing_unwritten(tmp_path: Path) -> None:
    trackers = start("tensorboard", tmp_path)
    for step in range(5):
        trackers.scalars(step, {"loss": 0.0})
        trackers.audio(step, "prompt", tone(200_000), RATE)  # slower to write than to give
    trackers.sync()
    shown = events(tmp_path)
    assert [event.step for event in shown.Scalars("loss")] == list(range(5))
    assert [event.step for event in shown.Audio("audio/prompt")] == list(range(5))
    trackers.close()


@pytest.mark.parametrize("samples", [0, 1])
def test_a_sound_of_no_samples_is_silence(tmp_path: Path, samples: int) -> None:
    trackers = start("tensorboard", tmp_path)
    trackers.audio(5, "prompt", np.zeros(samples, np.float32), RATE)
    trackers.close()
    (sound,) = events(tmp_path).Audio("audio/prompt")
    assert sound.step == 5
    assert not decode_audio(sound.encoded_audio_string, RATE).any()


def location(output: Path, kind: str) -> str:
    return str(output) if kind == "path" else output.as_uri()


@pytest.mark.parametrize("kind", ["path", "uri"])
def test_a_resumed_run_shows_each_step_once(tmp_path: Path, kind: str) -> None:
    output = location(tmp_path, kind)
    killed = start("tensorboard", output)
    for step in range(1, 7):
        killed.scalars(step, {"loss": 1.0})
    killed.audio(4, "prompt", tone(), RATE)
    killed.audio(6, "prompt", tone(), RATE)
    killed.sync()  # and not closed
    assert len(curve(tmp_path, "loss")) == 6

    resumed = restart("tensorboard", output, first_step=4)
    for step in range(5, 8):
        resumed.scalars(step, {"loss": 2.0})
    resumed.close()
    assert curve(tmp_path, "loss") == [(step, 1.0 if step <= 4 else 2.0) for step in range(1, 8)]
    assert [event.step for event in events(tmp_path).Audio("audio/prompt")] == [4]
    killed.close()


def test_a_run_from_step_0_hides_the_one_before(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        trackers = restart("tensorboard", tmp_path, first_step=0)
        for step in range(3 if value == 2.0 else 9):
            trackers.scalars(step, {"loss": value})
        trackers.close()
    assert curve(tmp_path, "loss") == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_a_uri_gets_the_trackers_events_at_each_sync(tmp_path: Path, temporary: Path) -> None:
    output = tmp_path / "output"
    trackers = start("tensorboard", output.as_uri())
    trackers.scalars(1, {"loss": 1.0})
    assert not output.exists()
    trackers.sync()
    assert curve(output, "loss") == [(1, 1.0)]
    assert not list(temporary.rglob("*tfevents*"))  # or they would be copied again and again
    trackers.sync()
    wait_for_the_next_second()
    trackers.scalars(2, {"loss": 2.0})
    assert curve(output, "loss") == [(1, 1.0)]
    trackers.sync()
    assert curve(output, "loss") == [(1, 1.0), (2, 2.0)]
    wait_for_the_next_second()
    trackers.scalars(3, {"loss": 3.0})
    trackers.close()
    assert curve(output, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert not list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("records", [0, 3000])
def test_a_process_that_never_closed_its_trackers_leaves_no_folder(
    records: int, tmp_path: Path, temporary: Path
) -> None:
    """As a worker that fails while it sets itself up, or while TensorBoard's thread writes."""
    code = f"""
        import os
        from sheen.train.tracking import open_trackers
        trackers = open_trackers(["tensorboard"], {tmp_path.as_uri()!r}, {{}}, 0)
        assert os.listdir({str(temporary)!r})
        for step in range({records}):
            trackers.scalars(step, {{"loss": 1.0}})
        raise SystemExit(3)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 3
    assert "Traceback" not in ended.stderr, ended.stderr
    assert not list(temporary.iterdir())


def test_no_trackers_write_nothing(tmp_path: Path, temporary: Path) -> None:
    for output in (str(tmp_path / "output"), (tmp_path / "output").as_uri()):
        trackers = open_trackers([], output, FIELDS, 0)
        trackers.scalars(1, {"loss": 1.0})
        trackers.sync()
        trackers.close()
    assert [path.name for path in tmp_path.iterdir()] == ["temporary"]
    assert not list(temporary.iterdir())


def test_unknown_names_of_trackers_are_refused() -> None:
    message = r"--trackers wandbb: .*tensorboard, wandb"
    with pytest.raises(ValueError, match=message):
        check_trackers(["tensorboard", "wandbb"])


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_package_of_a_tracker_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"--trackers {name} .*pip install {name}$"):
        check_trackers([name])


def test_a_folder_named_wandb_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B leaves a folder `wandb` in the working directory, and Python can import a folder."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ValueError, match="pip install wandb"):
        check_trackers(["wandb"])


def test_trackers_whose_packages_are_installed_are_accepted() -> None:
    check_trackers([])
    check_trackers(list(TRACKERS))


def test_a_tracker_that_cannot_open_is_off_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as on a worker that lacks it
    trackers = open_trackers(["wandb", "tensorboard"], str(tmp_path), FIELDS, 0)
    trackers.scalars(1, {"loss": 1.0})
    trackers.sync()
    trackers.audio(1, "prompt", tone(), RATE)
    trackers.close()
    assert curve(tmp_path, "loss") == [(1, 1.0)]
    assert trackers.missed == Counter(wandb=2)
    failed, ended = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "wandb failed" in failed.getMessage()
    assert failed.exc_info is not None
    assert "wandb was off and missed 2 records" in ended.getMessage()


def test_a_tracker_that_fails_during_the_run_is_off_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trackers = start("tensorboard", tmp_path)
    trackers.scalars(1, {"loss": 1.0})
    trackers.image(1, "prompt", b"no PNG")
    trackers.scalars(2, {"loss": 1.0})
    trackers.image(2, "prompt", b"nor this")
    trackers.sync()
    trackers.close()
    trackers.close()
    assert trackers.missed == Counter(tensorboard=2)
    failures = [record for record in caplog.records if "failed" in record.getMessage()]
    assert len(failures) == 1


def test_a_trackers_folder_that_cannot_be_written_stops_no_run(tmp_path: Path) -> None:
    output = tmp_path / "output"
    trackers = start("tensorboard", output.as_uri())
    output.write_bytes(b"a file")
    trackers.scalars(1, {"loss": 1.0})
    trackers.sync()
    trackers.scalars(2, {"loss": 1.0})
    trackers.close()
    assert trackers.missed == Counter(tensorboard=1)


@pytest.fixture
def offline_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import wandb

    for variable in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()


def wandb_records(folder: Path) -> list[Any]:
    """The records of an offline run: a LevelDB log of protocol buffers after 7 bytes of header."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data = path.read_bytes()
    records, parts, at = [], b"", 7
    while at + 7 <= len(data):
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(parts))
            parts = b""
        left = 32768 - at % 32768
        at += left if left < 7 else 0
    return records


def wandb_history(folder: Path) -> dict[int, dict[str, Any]]:
    """Values by step and name; a file's name is its key and `/path`."""
    return {
        record.history.step.num: {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.history.item
        }
        for record in wandb_records(folder)
        if record.HasField("history")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("offline_wandb")
def test_wandb_offline_keeps_every_step_once_over_a_resumed_run(
    tmp_path: Path, temporary: Path
) -> None:
    """One W&B process for all of it: it starts slowly."""
    pixels, png = picture()
    output = tmp_path / "output"
    trackers = start("wandb", output.as_uri())
    trackers.scalars(1, {"loss": 0.5})
    trackers.audio(2, "prompt", tone(), RATE)
    trackers.image(2, "prompt", png)
    trackers.scalars(2, {"loss": 0.25})
    trackers.sync()
    assert list((output / "wandb").glob("*/*.wandb"))
    trackers.close()
    assert trackers.missed == Counter()
    assert not list(temporary.glob("sheen-*"))

    (folder,) = (output / "wandb").iterdir()
    history = wandb_history(folder)
    assert {step: row["loss"] for step, row in history.items()} == {1: 0.5, 2: 0.25}
    row = history[2]
    heard = decode_audio((folder / "files" / row["audio/prompt/path"]).read_bytes(), RATE)
    np.testing.assert_allclose(heard, tone(), atol=2 * STEP_OF_PCM)
    seen = np.asarray(Image.open(folder / "files" / row["image/prompt/path"]))
    np.testing.assert_array_equal(seen, pixels)

    def run_of(folder: Path) -> Any:
        return next(record.run for record in wandb_records(folder) if record.HasField("run"))

    first = run_of(folder)
    assert (first.project, first.display_name) == ("sheen", "output")
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert FIELDS.items() <= config.items()

    resumed = restart("wandb", output.as_uri(), first_step=2)
    resumed.scalars(3, {"loss": 1.0})
    resumed.close()
    newest = max((output / "wandb").iterdir(), key=lambda path: path.name)
    assert newest != folder
    assert run_of(newest).run_id == first.run_id
    assert wandb_history(newest)[3]["loss"] == 1.0
