"""What a train job is given: the tags of data and model."""

from pathlib import Path

import pytest

from helpers.example import CHECKPOINT, CODEC
from sheen.codec.info import describe_codec
from sheen.data import dataset
from sheen.encode.config import EncodeConfig
from sheen.text.normalization import describe
from sheen.train.initial import open_model
from sheen.train.inputs import plan_checkpoint, tags_of


def data(folder: Path, tags: list[str], language: str | None = None) -> str:
    info = dataset.DatasetInfo(
        codec=describe_codec(str(CODEC)),
        sample_rate=24_000,
        normalizer=() if language is None else (describe(language),),
        tags=tags,
    )
    folder.mkdir()
    dataset.write_info(str(folder), info)
    return str(folder)


def test_tags_are_those_asked_for_else_those_that_the_data_kept(tmp_path: Path) -> None:
    written = data(tmp_path / "written", [])
    kept = data(tmp_path / "kept", ["<sigh>", "<laugh>"], "en")
    assert tags_of([written], None) == []
    assert tags_of([written, kept], None) == ["<laugh>", "<sigh>"]
    assert tags_of([written, kept], ["<sigh>"]) == ["<sigh>"]
    with pytest.raises(ValueError, match=r"--tags <cough>: --data .*kept was normalized"):
        tags_of([written, kept], ["<cough>"])


@pytest.mark.slow
def test_a_base_gets_them_as_tokens_and_a_checkpoint_has_its_own(base: Path) -> None:
    codec = describe_codec(str(CODEC))
    info, tokenizer, extends = plan_checkpoint(str(base), codec, ["<laugh>"])
    assert (info.tags, extends) == (["<laugh>"], True)
    model, again = open_model(str(base), info, 0, None, lora_rank=0)
    assert model.layout == info.token_layout
    laugh = again.convert_tokens_to_ids("<laugh>")
    assert tokenizer.convert_tokens_to_ids("<laugh>") == laugh == info.layout.start_id - 1
    with pytest.raises(ValueError, match=r"--tags <laugh>: .*has no tags; new tags need a base"):
        plan_checkpoint(str(CHECKPOINT), codec, ["<laugh>"])


@pytest.mark.parametrize("wrong", ["", "<laugh", "a b", "<>", "</laugh>", "<1>"])
def test_what_no_tag_can_be_is_refused(wrong: str) -> None:
    arguments = {"input": "x", "output": "/y"}
    assert EncodeConfig(**arguments, tags=["laugh", "<sigh>"]).tags == ["<laugh>", "<sigh>"]
    with pytest.raises(ValueError, match="expected a tag"):
        EncodeConfig(**arguments, tags=[wrong])
