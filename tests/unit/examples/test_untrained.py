"""The control of the voice's tables: the same checkpoint, with weights that no training made."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.example import ENGLISH, load_script
from sheen.engine.voice import load_voice

untrained = load_script(ENGLISH / "untrained.py")


@pytest.mark.slow
def test_everything_but_the_weights_is_the_checkpoint_s(checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("one", "0"), ("same", "0"), ("other", "1")):
        words = ["--checkpoint", str(checkpoint), "--output", str(tmp_path / name)]
        untrained.main([*words, "--seed", seed])
    trained, one, same, other = (
        load_file(folder / "model.safetensors")
        for folder in (checkpoint, tmp_path / "one", tmp_path / "same", tmp_path / "other")
    )
    shapes = {name: part.shape for name, part in trained.items()}
    assert {name: part.shape for name, part in one.items()} == shapes
    table = "model.embed_tokens.weight"
    assert all(torch.equal(part, same[name]) for name, part in one.items())
    assert not torch.equal(one[table], other[table])
    assert not torch.equal(one[table], trained[table].bfloat16())
    for path in checkpoint.rglob("*"):
        if path.is_file() and path.name not in ("model.safetensors", "config.json"):
            assert (
                tmp_path / "one" / path.relative_to(checkpoint)
            ).read_bytes() == path.read_bytes()
    assert load_voice(str(tmp_path / "one")).info == load_voice(str(checkpoint)).info


def test_an_output_that_exists_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        untrained.main(["--checkpoint", str(checkpoint), "--output", str(tmp_path)])
    assert f"--output {tmp_path} exists" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
