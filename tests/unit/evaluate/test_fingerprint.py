"""What an evaluation's folder is compared by: the content of its inputs, wherever they are."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.example import CHECKPOINT
from sheen.data.prompts import Prompt
from sheen.evaluate.config import EvaluateConfig
from sheen.evaluate.prompts import prepare_output
from sheen.lm.checkpoint import CheckpointInfo, read_info


def test_codec_and_description_of_a_foreign_checkpoint_may_move_and_not_change(
    tmp_path: Path,
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "pytorch_model.bin").write_bytes(b"weights")
    described, moved = tmp_path / "info.json", tmp_path / "moved.json"
    described.write_text("{}", "utf-8")
    moved.write_text("{}", "utf-8")
    info = read_info(str(CHECKPOINT))

    def evaluate(checkpoint: CheckpointInfo = info, **fields: Any) -> None:
        given = {"codec": "/here/codec", "info": str(described)} | fields
        config = EvaluateConfig(model=str(model), prompts="p", output="o", **given)
        prepare_output(
            str(tmp_path / "out"), config, str(model), checkpoint, [Prompt("a", "one")], None
        )

    evaluate()
    (tmp_path / "out" / "rows").mkdir()  # it has begun
    evaluate(codec="/there/codec", info=str(moved))
    other = info.model_copy(update={"codec": info.codec.model_copy(update={"sha256": "other"})})
    with pytest.raises(ValueError, match="codec sha256 was"):
        evaluate(other)
    described.write_text('{"voices": []}', "utf-8")
    with pytest.raises(ValueError, match="info sha256 was"):
        evaluate()
    (model / "pytorch_model.bin").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin of the model was"):
        evaluate(info=str(moved))


def test_another_decoder_for_a_checkpoints_codec_is_another_evaluation(tmp_path: Path) -> None:
    shutil.copytree(CHECKPOINT / "codec", tmp_path / "codec")

    def evaluate() -> None:
        config = EvaluateConfig(
            model=str(CHECKPOINT), prompts="p", output="o", codec=str(tmp_path / "codec")
        )
        prepare_output(
            str(tmp_path / "out"),
            config,
            config.model,
            read_info(CHECKPOINT),
            [Prompt("a", "b")],
            None,
        )

    evaluate()
    (tmp_path / "out" / "rows").mkdir()  # it has begun
    evaluate()
    with (tmp_path / "codec" / "pytorch_model.bin").open("ab") as file:
        file.write(b"!")
    with pytest.raises(ValueError, match="codec sha256 was"):
        evaluate()
