"""What tests share: one local Ray cluster, and the path's real products made once, small.

Everything here is the real thing at small size: the example's recordings, the small codec, a base
model of a few thousand parameters, encoded and trained by the jobs' own code.
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Before Ray or torch is imported: a token left in the home folder must not matter, and two cores
# do not bear several threads in several processes.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import ray
import torch

from sheen import cluster
from sheen.core.codec import Codec, load_codec
from sheen.core.voice import Voice, load_voice
from sheen.encode.config import EncodeConfig
from sheen.encode.job import run as encode
from sheen.train.config import TrainConfig
from sheen.train.job import run as train

ROOT = Path(__file__).resolve().parent.parent
DIGITS = ROOT / "examples" / "digits"
CODEC = DIGITS / "codec"
VOICES = ("slt", "rms", "awb", "kal16")

torch.set_num_threads(1)


def load_script(path: Path) -> ModuleType:
    """A script that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def codec() -> Codec:
    return load_codec(str(CODEC))


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
    (folder / "wavs").mkdir()
    lines = (DIGITS / "corpus" / "metadata.csv").read_text("utf-8").splitlines()
    kept = []
    for voice in VOICES:
        mine = [line for line in lines if line.endswith(f"|{voice}")]
        kept += sorted(mine, key=lambda line: len(line.split("|")[1]))[:4]
    for line in kept:
        name = f"{line.split('|')[0]}.flac"
        shutil.copy(DIGITS / "corpus" / "wavs" / name, folder / "wavs" / name)
    (folder / "metadata.csv").write_text("\n".join(kept) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def encoded(ray_cluster: None, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus, encoded by the job."""
    output = tmp_path_factory.mktemp("encoded") / "codes"
    report = encode(
        EncodeConfig(input=str(corpus), output=str(output), codec=str(CODEC), batch_size=4)
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
        "batch_tokens": 512,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "eval_share": 0.2,
        "eval_every": 3,
        "log_every": 1,
        "save_every": 3,
    }
    return TrainConfig(**(fields | changes))


@pytest.fixture(scope="session")
def trained(encoded: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short training run: checkpoint/ and metrics.jsonl."""
    output = tmp_path_factory.mktemp("trained") / "train"
    train(train_config(encoded, base, output))
    return output


@pytest.fixture(scope="session")
def voice(trained: Path) -> Voice:
    return load_voice(str(trained / "checkpoint"))
