"""The codec job on a local cluster: a codec others open, and a run that is not lost."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from ray.exceptions import RayActorError
from snac import SNAC
from torch import Tensor

from helpers.example import CODEC, ROOT, VOICES, clips_of, flac, load_script
from helpers.resident import Resident
from helpers.tiny_codec import TINY
from helpers.tiny_whisper import convert, save_encoder
from sheen.audio.io import decode_audio, to_pcm16
from sheen.audio.spectral import mel_distance
from sheen.codec.asr_features import AsrFeatureLoss, open_asr_encoder
from sheen.codec.snac import load_codec, open_codec
from sheen.codec.training import TrainableCodec
from sheen.train import loop
from sheen.train.codec import job as codec_job
from sheen.train.codec import trainer
from sheen.train.codec.config import CodecTrainConfig
from sheen.train.codec.data import SegmentReader, find_recordings, sample_names
from sheen.train.codec.job import run

RATE = 24_000
SAMPLES = 6144  # of a segment of 0.25 s, in whole blocks
TERMS = ("mel", "stft", "waveform", "commitment", "codebook")
ADVERSARIAL_TERMS = ("adversarial", "feature_matching", "discriminator")
TIMED = {"realtime", "seconds_left"}

main = load_script(ROOT / "jobs" / "train_codec.py").main


IN_A_SHORT_RUN = [(loop, "LOG_LINES", 4), (trainer, "RESTART_PATIENCE", 2.0)]
"""Lines of the log for several steps each, and codes that are restarted, in a run of 23 steps."""


@pytest.fixture(scope="module")
def resident(resident: Resident) -> Iterator[Resident]:
    for module, name, value in IN_A_SHORT_RUN:
        resident.call(partial(setattr, module, name, value))
    yield resident
    for module, name, _ in IN_A_SHORT_RUN:
        resident.call(partial(setattr, module, name, getattr(module, name)))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve short recordings of the example in a folder per voice, named 0 to 2 in each."""
    folder = tmp_path_factory.mktemp("recordings")
    for voice in VOICES:
        (folder / voice).mkdir()
        for number, clip in enumerate(clips_of(voice)[:3]):
            (folder / voice / f"{number}.flac").write_bytes(flac(clip))
    return folder


@pytest.fixture(scope="module")
def shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


def codec_config(data: Path, shape: Path, output: Path, **changes: Any) -> CodecTrainConfig:
    """The short run that several tests compare with. Its steps divide by neither period."""
    fields: dict[str, Any] = {
        "data": str(data),
        "output": str(output),
        "codec": str(shape),
        "from_scratch": True,
        "max_steps": 23,
        "segments": 2,
        "segment_seconds": 0.25,
        "learning_rate": 4e-3,
        "warmup_steps": 2,
        "eval_recordings": 4,
        "eval_every": 10,
        "save_every": 5,
        "cpus_per_worker": 0.5,
    }
    return CodecTrainConfig(**(fields | changes))


@pytest.fixture(scope="module")
def trained(
    resident: Resident, recordings: Path, shape: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("codec") / "out"
    last = resident.train(run, codec_config(recordings, shape, output))
    assert last == metrics(output)[-1]
    return output


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whisper")
    return convert(save_encoder(folder / "transformers"), folder / "ctranslate2")


@pytest.fixture(scope="module")
def trained_with_asr(
    resident: Resident,
    recordings: Path,
    shape: Path,
    whisper: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    output = tmp_path_factory.mktemp("codec") / "out"
    fields = {"asr_features": str(whisper), "max_steps": 20}
    resident.train(run, codec_config(recordings, shape, output, **fields))
    return output


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def curve(output: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMED} for row in metrics(output)]


def weights(output: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(
        output / "codec" / "pytorch_model.bin", weights_only=True
    )
    return loaded


def test_metrics_say_what_a_user_needs(trained: Path) -> None:
    data, first, *steps = metrics(trained)
    assert data == {
        "event": "data",
        "train_recordings": 8,
        "eval_recordings": 4,
        "dropped": {},
    }
    assert (first["event"], first["step"], first["steps"]) == ("step", 0, 23)
    assert "mel" not in first, "before the first step only the evaluation"
    assert [row["step"] for row in steps] == [5, 10, 15, 20, 23]
    for row in steps:
        assert {*TERMS, *TIMED, "restarted_codes", "gradient_norm", "learning_rate"} <= set(row)
        assert all(math.isfinite(row[term]) and row[term] > 0 for term in TERMS)
        assert row["realtime"] > 0
        assert "unreadable" not in row
        assert "asr_features" not in row
    assert steps[-1]["seconds_left"] == 0
    evaluated = [row for row in [first, *steps] if "eval_mel_distance_db" in row]
    assert [row["step"] for row in evaluated] == [0, 10, 20, 23]
    for row in evaluated:
        assert row["eval_mel_distance_db"] > 0
        for level in range(3):
            assert 1.0 <= row[f"eval_perplexity_level_{level}"] <= 64.0


def test_training_lowers_the_losses(trained: Path) -> None:
    _, _, *steps = metrics(trained)
    assert steps[-1]["mel"] < 0.8 * steps[0]["mel"]
    assert sum(row["restarted_codes"] for row in steps) > 0


def test_asr_features_are_learnt_from_and_logged(trained: Path, trained_with_asr: Path) -> None:
    *_, plain, _ = metrics(trained)
    _, _, *steps = metrics(trained_with_asr)
    assert plain["step"] == steps[-1]["step"]
    for row in steps:
        assert {*TERMS, *TIMED, "asr_features"} <= set(row)
        assert row["asr_features"] > 0
    assert steps[-1]["asr_features"] < steps[0]["asr_features"]
    assert steps[-1]["mel"] != plain["mel"], "it moves the weights"
    # The encoder is no part of the codec.
    assert list(weights(trained_with_asr)) == list(weights(trained))


def test_each_evaluation_writes_recordings_and_reconstructions(
    trained: Path, recordings: Path
) -> None:
    held_out = find_recordings(str(recordings), 4, 0).evaluation
    names = sample_names(held_out)
    folders = {"recordings", "step-000000", "step-000010", "step-000020", "step-000023"}
    assert {path.name for path in (trained / "samples").iterdir()} == folders
    for folder in folders:
        found = {path.name for path in (trained / "samples" / folder).iterdir()}
        assert found == {f"{name}.wav" for name in names}
    for path, name in zip(held_out, names, strict=True):
        recording = to_pcm16(decode_audio(Path(path).read_bytes(), RATE))
        heard, rate = soundfile.read(trained / "samples/recordings" / f"{name}.wav", dtype="int16")
        assert rate == RATE
        np.testing.assert_array_equal(heard, recording)
        before, after = (
            soundfile.read(trained / "samples" / step / f"{name}.wav", dtype="int16")[0]
            for step in ("step-000000", "step-000023")
        )
        assert len(before) == len(after) == len(recording)
        assert not np.array_equal(before, after)


def test_the_last_evaluation_is_of_the_codec_that_is_written(
    trained: Path, recordings: Path
) -> None:
    codec = load_codec(str(trained / "codec"))
    assert json.loads((trained / "codec" / "config.json").read_text()) == TINY
    distances = []
    for path in find_recordings(str(recordings), 4, 0).evaluation:
        waveform = decode_audio(Path(path).read_bytes(), RATE)
        (codes,) = codec.encode([torch.from_numpy(waveform)])
        decoded = codec.decode([level[None] for level in codes])[0, : len(waveform)].numpy()
        distances.append(mel_distance(decoded, waveform, RATE))
    last = metrics(trained)[-1]
    assert last["eval_mel_distance_db"] == pytest.approx(np.mean(distances), abs=2e-3)


def test_the_published_package_opens_the_codec(trained: Path) -> None:
    model = SNAC.from_pretrained(str(trained / "codec"))
    for name, weight in model.state_dict().items():
        assert torch.isfinite(weight).all(), name
    with torch.inference_mode():
        audio, codes = model(torch.zeros(1, 1, 4096))
    assert audio.shape == (1, 1, 4096)
    assert [level.shape[1] for level in codes] == [2, 4, 8]


def test_a_killed_run_resumes_by_name_and_ends_the_same(
    resident: Resident, trained: Path, recordings: Path, shape: Path, tmp_path: Path
) -> None:
    """Killed in its worker: of a driver that is killed see the other training job."""
    output = tmp_path / "out"
    config = codec_config(recordings, shape, output)
    killed, saved = Resident(), output / "run" / "checkpoints.json"
    worker = killed.call(os.getpid)
    for module, name, value in IN_A_SHORT_RUN:
        killed.call(partial(setattr, module, name, value))
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(killed.train, run, config)
        while not saved.exists() and not training.done():
            time.sleep(0.02)
        os.kill(worker, signal.SIGKILL)
    assert isinstance(training.exception(), RayActorError)
    assert json.loads(saved.read_text())["checkpoints"][-1] < "step-00000023"
    assert not (output / "codec").exists(), "it was killed before its end"
    # Lines and samples that the killed run wrote after its checkpoint must not matter.
    resident.train(run, config)
    assert curve(output) == curve(trained)
    assert list(weights(output)) == list(weights(trained))
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, weights(output)[name]), name


@pytest.mark.soak  # others here resume a finished run too
def test_a_finished_run_has_nothing_left_but_its_export(
    resident: Resident, trained: Path, recordings: Path, shape: Path, tmp_path: Path
) -> None:
    """Of its own folder moved elsewhere, and with fields that a resumed run may change."""
    output = Path(shutil.copytree(trained, tmp_path / "out"))
    shutil.rmtree(output / "codec")
    resident.train(run, codec_config(recordings, shape, output, save_every=3, eval_every=7))
    assert (output / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()
    for name, tensor in weights(trained).items():
        assert torch.equal(tensor, weights(output)[name]), name


@pytest.mark.soak
def test_two_workers_share_the_segments_of_one(
    ray_cluster: None, recordings: Path, shape: Path, whisper: Path, tmp_path: Path
) -> None:
    """Also: half the size on request, no evaluation, and a recording that cannot be read."""
    data = tmp_path / "data"
    shutil.copytree(recordings, data)
    (data / "torn.flac").write_bytes(next(data.rglob("*.flac")).read_bytes()[:2000])
    changes = {
        "num_workers": 2, "segments": 7, "max_steps": 5, "save_every": 10, "eval_recordings": 0,
        "half": True, "seed": 3, "asr_features": str(whisper),
    }  # fmt: skip
    run(codec_config(data, shape, tmp_path / "out", **changes))
    # The first step again, in one worker: codes are chosen before any noise is added.
    torch.manual_seed(3)
    model, _ = open_codec(str(shape), from_scratch=True)
    reader = SegmentReader(
        find_recordings(str(data), 0, 3).train,
        sample_rate=RATE, samples=SAMPLES, per_rank=14, rank=0, world=1, seed=3,
    )  # fmt: skip
    distance = AsrFeatureLoss(open_asr_encoder(str(whisper)), RATE)
    losses = TrainableCodec(model, asr_features=distance)(next(reader.batches(0, 1)))
    assert losses.asr_features is not None
    _, first, *others = metrics(tmp_path / "out")
    assert first["commitment"] == pytest.approx(losses.commitment.item(), abs=1e-5)
    assert first["codebook"] == pytest.approx(losses.codebook.item(), abs=1e-5)
    assert first["mel"] == pytest.approx(losses.mel.item(), rel=0.05)
    assert first["asr_features"] == pytest.approx(losses.asr_features.item(), rel=0.05)
    for row in [first, *others]:
        assert all(math.isfinite(row[term]) for term in (*TERMS, "asr_features"))
        assert list(row["unreadable"]) == [str(data / "torn.flac")]
        assert "eval_mel_distance_db" not in row
    assert sum(row["restarted_codes"] for row in [first, *others]) > 0
    assert not (tmp_path / "out" / "samples").exists()
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {torch.float16}
    assert load_codec(str(tmp_path / "out" / "codec")).codebook_size == 64


@pytest.mark.soak
def test_two_workers_teach_the_decoder_alone(
    ray_cluster: None, trained: Path, recordings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    changes = {
        "codec": str(trained / "codec"), "from_scratch": False, "adversarial": True,
        "num_workers": 2, "segments": 2, "max_steps": 4, "save_every": 2,
    }  # fmt: skip
    config = codec_config(recordings, trained, output, **changes)
    run(config)
    _, _, *steps = metrics(output)
    for row in steps:
        assert all(math.isfinite(row[name]) for name in ("mel", *ADVERSARIAL_TERMS))
        assert not {"codebook", "commitment", "restarted_codes"} & set(row)
    before, after = weights(trained), weights(output)
    assert list(after) == list(before)
    for name, weight in before.items():
        assert torch.equal(weight, after[name]) == (not name.startswith("decoder.")), name
    # Of a finished run its checkpoint is opened, and nothing is left to do.
    assert run(config) == steps[-1]
    first = codec_config(recordings, trained, output, **changes | {"adversarial": False})
    with pytest.raises(ValueError, match="adversarial was True, now None"):
        run(first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.5}, r"learning_rate was 0\.004, now 0\.5"),
        ({"segments": 5}, "segments was 2, now 5"),
        ({"codec": str(CODEC)}, "codec content was '[0-9a-f]{64}', now '[0-9a-f]{64}'"),
    ],
)
def test_a_run_of_other_settings_is_not_resumed(
    trained: Path, recordings: Path, shape: Path, changes: dict[str, Any], message: str
) -> None:
    before = curve(trained)
    with pytest.raises(ValueError, match=message):
        run(codec_config(recordings, shape, trained, **changes))
    assert curve(trained) == before


def test_other_recordings_of_the_same_names_are_refused_and_moved_ones_resume(
    resident: Resident, trained: Path, recordings: Path, shape: Path, tmp_path: Path
) -> None:
    before = curve(trained)
    moved = tmp_path / "elsewhere"
    shutil.copytree(recordings, moved)
    resident.train(run, codec_config(moved, shape, trained))
    assert curve(trained) == before
    clips = sorted(moved.rglob("*.flac"))
    contents = [clip.read_bytes() for clip in clips]
    for clip, content in zip(clips, [*contents[1:], contents[0]], strict=True):
        clip.write_bytes(content)
    with pytest.raises(ValueError, match="recordings that were compared have another content"):
        run(codec_config(moved, shape, trained))
    clips[0].rename(clips[0].with_name("another.flac"))
    with pytest.raises(ValueError, match="data content was"):
        resident.train(run, codec_config(moved, shape, trained))
    assert curve(trained) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asr_features": None}, "asr_features was '[0-9a-f]{64}', now None"),
        ({}, "asr_features was '[0-9a-f]{64}', now '[0-9a-f]{64}'"),
    ],
)
def test_a_run_with_another_encoder_is_not_resumed(
    trained_with_asr: Path, recordings: Path, shape: Path, whisper: Path, tmp_path: Path,
    changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    """The last: a folder of the same name, with other weights in it."""
    if not changes:
        other = convert(save_encoder(tmp_path / "other", seed=1), tmp_path / whisper.name)
        changes = {"asr_features": str(other)}
    fields = {"asr_features": str(whisper), "max_steps": 20} | changes
    with pytest.raises(ValueError, match=message):
        run(codec_config(recordings, shape, trained_with_asr, **fields))


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("STFT_WEIGHT", "stft_weight"),
        ("ASR_FEATURES_WEIGHT", "asr_features_weight"),
        ("RESTART_PATIENCE", "restart_patience"),
        ("AVERAGE_DECAY", "average_decay"),
    ],
)
def test_a_run_of_a_version_with_other_constants_is_not_resumed(
    trained_with_asr: Path, recordings: Path, shape: Path, whisper: Path,
    monkeypatch: pytest.MonkeyPatch, name: str, field: str,
) -> None:  # fmt: skip
    fields = {"asr_features": str(whisper), "max_steps": 20}
    monkeypatch.setattr(codec_job, name, 7.0)
    with pytest.raises(ValueError, match=rf"{field} was [\d.]+, now 7\.0"):
        run(codec_config(recordings, shape, trained_with_asr, **fields))


def test_a_run_of_before_further_losses_resumes(
    resident: Resident, trained: Path, recordings: Path, shape: Path, tmp_path: Path
) -> None:
    """Its record names no such fields."""
    output = Path(shutil.copytree(trained, tmp_path / "out"))
    record = output / "run" / "run.json"
    fields = json.loads(record.read_text())
    assert fields.pop("asr_features") is None
    assert fields.pop("quantizer_dropout") is None
    assert fields.pop("speed_perturbation") is None
    assert fields.pop("adversarial") is None
    assert not {"asr_features_weight", "adversarial_weight"} & set(fields)
    record.write_text(json.dumps(fields))
    assert resident.train(run, codec_config(recordings, shape, output)) == metrics(trained)[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "{empty}"], "no audio files (.wav, .flac"),
        (["--data", "{empty}/nowhere"], "nowhere: no such file or folder"),
        (["--data", "{data}", "--eval-recordings", "12"], "--eval-recordings 12"),
        (["--data", "{data}", "--codec", "{empty}"], "config.json is missing"),
        (["--data", "{data}", "--codec", "{empty}/nowhere"], "nowhere': no such folder"),
        (["--data", "{data}", "--codec", "{shape}"], "tiny.json': no such folder"),
        (["--data", "{data}", "--codec", "nobody/nothing"], "codec 'nobody/nothing': not a folder"),
        (["--data", "{data}", "--waveform-wieght", "3"], "flag --waveform-wieght; did you mean"),
        (["--data", "{data}", "--segments", "0"], "segments: Input should be greater"),
        (
            ["--data", "{data}", "--eval-recordings", "2", "--asr-features", "{empty}/nowhere"],
            "--asr-features: speech encoder '{empty}/nowhere': no such folder",
        ),
        (
            [
                "--data",
                "{data}",
                "--eval-recordings",
                "2",
                "--asr-features",
                "{whisper}",
                "--segment-seconds",
                "2.1",
            ],
            "--segment-seconds 2.1: the encoder of --asr-features {whisper} takes at most 2 s",
        ),
        ([], "give --data or the key 'data'"),
    ],
)
def test_what_the_user_must_change_is_named(
    recordings: Path, shape: Path, whisper: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], words: list[str], message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    places = {
        "empty": tmp_path / "empty", "data": recordings, "shape": shape, "whisper": whisper,
    }  # fmt: skip
    message = message.format(**places)
    words = [word.format(**places) for word in words]
    if "--codec" not in words:
        words += ["--codec", str(CODEC)]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jobs/train_codec.py: error: ")
    assert message in error
    if "wieght" in message:
        assert "--waveform-weight" in error
    assert not (tmp_path / "out").exists()


def test_an_output_among_the_recordings_is_refused(
    recordings: Path, shape: Path, tmp_path: Path
) -> None:
    """Its samples would be recordings to train on when the run resumes."""
    data = Path(shutil.copytree(recordings, tmp_path / "data"))
    for output in (data, data / "deep" / "out"):
        with pytest.raises(ValueError, match=r"--output .* is inside --data"):
            run(codec_config(data, shape, output))
    assert not (data / "deep").exists()
