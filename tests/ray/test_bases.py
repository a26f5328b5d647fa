"""A base that cannot be loaded, which only a worker finds out."""

import shutil
from pathlib import Path

import pytest

from helpers.corpora import own_line
from helpers.example import ROOT, load_script
from helpers.resident import Resident
from helpers.training import train_config

main = load_script(ROOT / "jobs" / "train.py").main


def test_what_only_a_worker_sees_ends_the_run_with_one_line(
    resident: Resident, encoded: Path, base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights of the older form, whose file opens only where they are loaded."""
    model = tmp_path / "base"
    shutil.copytree(base, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"no weights")
    config = train_config(encoded, model, tmp_path / "out")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in config.model_dump(
        exclude_unset=True, exclude={"data"}).items()]  # fmt: skip
    assert resident.train(main, [*words, "--data", str(encoded)]) == 2
    said = capfd.readouterr()
    last = own_line(said.err, "train")
    assert last.startswith("jobs/train.py: error:")
    assert str(model) in last
    assert "checkpoint" not in last, "there is none"
