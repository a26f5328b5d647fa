"""What tests share: one local Ray cluster, and the path's real products made once, small.

Everything here is the real thing at small size: the example's recordings, the small codec, a base
model of a few thousand parameters, encoded and trained by the jobs' own code.
"""

import importlib.util
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sheen.runs import loopback

# Before Ray or torch is imported: no other machine and no other user may reach the clusters of the
# tests, a token left in the home folder must not matter, and two cores do not bear several threads
# in several processes.
os.environ.update(loopback.settings(loopback.folder_until_exit()))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if threading.current_thread() is threading.main_thread():
    # A shell's background job ignores Ctrl-C, and so would what tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import ray
import torch
from safetensors.torch import load_file

from sheen.audio.io import decode_audio
from sheen.codec.snac import Codec, load_codec
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run as encode
from sheen.engine.voice import Voice, load_voice
from sheen.runs import cluster
from sheen.scoring import code_usage
from sheen.scoring.asr import Pocketsphinx
from sheen.scoring.codec import CodecReport, Recording, Waveform, measure_codec
from sheen.scoring.speaker_id import SpeakerProfiles
from sheen.train.config import TrainConfig
from sheen.train.job import run as train

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
CODEC = DIGITS / "codec"
VOICES = ("slt", "rms", "awb", "kal16")
HELD_OUT = ("h001", "h010")  # of two and of three digits
RATE = 24_000  # of the small codec, Hz

Measured = tuple[CodecReport, list[Waveform]]

torch.set_num_threads(1)


def load_script(path: Path) -> ModuleType:
    """A script that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(folder: str, voice: str) -> list[list[str]]:
    """What the example's metadata.csv says of one voice's recordings: id, text, ..., voice."""
    lines = (DIGITS / folder / "metadata.csv").read_text("utf-8").splitlines()
    return [line.split("|") for line in lines if line.endswith(f"|{voice}")]


def read_clip(folder: str, name: str, sample_rate: int = RATE) -> Waveform:
    """A recording of the example, `[n]`."""
    return decode_audio((DIGITS / folder / "wavs" / f"{name}.flac").read_bytes(), sample_rate)


def copy_corpus(rows: Sequence[Sequence[str]], folder: Path) -> None:
    """Make `folder` an LJSpeech folder of these rows of the example's corpus."""
    (folder / "wavs").mkdir()
    for name, *_ in rows:
        shutil.copy(DIGITS / "corpus" / "wavs" / f"{name}.flac", folder / "wavs")
    (folder / "metadata.csv").write_text("".join("|".join(row) + "\n" for row in rows), "utf-8")


@pytest.fixture(scope="session")
def codec() -> Codec:
    return load_codec(str(CODEC))


@pytest.fixture(scope="session")
def profiles() -> SpeakerProfiles:
    few = {
        voice: [read_clip("corpus", row[0]) for row in rows_of("corpus", voice)[:6]]
        for voice in VOICES
    }
    return SpeakerProfiles.fit(few, RATE)


@pytest.fixture(scope="session")
def recordings() -> list[Recording]:
    """Two held-out recordings of each voice."""
    return [
        Recording(name, read_clip("heldout", name), text, voice)
        for voice in VOICES
        for name, text, *_ in rows_of("heldout", voice)
        if name.endswith(HELD_OUT)
    ]


@pytest.fixture(scope="session")
def speed_timed_briefly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_usage, "SPEED_SECONDS", 0.2)
        yield


@pytest.fixture(scope="session")
def measured(
    codec: Codec,
    recordings: list[Recording],
    profiles: SpeakerProfiles,
    speed_timed_briefly: None,
) -> Measured:
    """The real codec, scored by the real ASR."""
    asr = Pocketsphinx(DIGITS / "digits.gram")
    return measure_codec(codec, "small", recordings, asr=asr, profiles=profiles)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local cluster of two CPUs, whatever the machine has."""
    ray.init(
        "local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": cluster.WORKER_ENV}
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LJSpeech folder of 16 short recordings, 4 per voice, from the example."""
    folder = tmp_path_factory.mktemp("corpus")
    rows: list[list[str]] = []
    for voice in VOICES:
        # Of 80, as many as every voice has: what is trained here does not change with the demo.
        rows += sorted(rows_of("corpus", voice)[:80], key=lambda row: len(row[1]))[:4]
    copy_corpus(rows, folder)
    return folder


@pytest.fixture(scope="session")
def encoded(ray_cluster: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, encoded by the job."""
    output = tmp_path_factory.mktemp("encoded") / "codes"
    report = encode(
        EncodeConfig(input=str(corpus), output=str(output), codec=str(CODEC), rows_per_block=4)
    )
    assert report["rows_out"] == 16
    return output


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Qwen3 of two thin layers and its character tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "model"
    script = load_script(DIGITS / "make_base.py")
    script.main(["--output", str(folder), "--hidden-size", "64", "--layers", "2"])
    return folder


def train_config(data: Path, base: Path, output: Path, **changes: Any) -> TrainConfig:
    """The short run that several tests compare with."""
    fields: dict[str, Any] = {
        "data": str(data),
        "output": str(output),
        "model": str(base),
        "max_steps": 6,
        "accumulation": 2,
        "max_tokens": 512,
        "batch_tokens": 512,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "eval_share": 0.2,
        "eval_every": 3,
        "log_every": 1,
        "save_every": 3,
    }
    return TrainConfig(**(fields | changes))


def metrics(output: Path) -> list[dict[str, Any]]:
    """Of a training run: the data's line, then a line per logged step."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output: Path) -> dict[str, torch.Tensor]:
    """Of a training run's last model."""
    return load_file(output / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="session")
def trained(encoded: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short training run: checkpoint/ and metrics.jsonl."""
    output = tmp_path_factory.mktemp("trained") / "train"
    train(train_config(encoded, base, output))
    return output


@pytest.fixture(scope="session")
def voice(trained: Path) -> Voice:
    return load_voice(str(trained / "checkpoint"))
