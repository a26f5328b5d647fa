"""What a train job is given: the codec and the tags of data and model."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pytest
import torch

from helpers.example import CHECKPOINT, CODEC
from sheen.codec.info import CODEC_FOLDER, describe_codec
from sheen.codec.snac import load_codec, open_codec
from sheen.codec.training import CodecFiles
from sheen.data import dataset
from sheen.encode.config import EncodeConfig
from sheen.lm.checkpoint import INFO_FILE, read_info
from sheen.storage import hub
from sheen.text.normalization import describe
from sheen.train.evaluation import EvalSample, EvalSamples, eval_prompts, sample_name
from sheen.train.initial import open_model
from sheen.train.inputs import codec_of, model_source, plan_checkpoint, tags_of
from sheen.train.tracking import open_trackers


def data(folder: Path, tags: list[str], language: str | None = None, codec: Path = CODEC) -> str:
    info = dataset.DatasetInfo(
        codec=describe_codec(str(codec)),
        sample_rate=24_000,
        normalizer=() if language is None else (describe(language),),
        tags=tags,
    )
    folder.mkdir()
    dataset.write_info(str(folder), info)
    shutil.copytree(codec, folder / CODEC_FOLDER)
    return str(folder)


def other_codec(folder: Path, part: str) -> Path:
    """The checkpoint's codec with another weight in one part."""
    model, config = open_codec(str(CODEC))
    with torch.no_grad():
        next(model.get_submodule(part).parameters()).view(-1)[0] += 1
    CodecFiles(config, torch.float16).write(folder, model.state_dict())
    return folder


def test_the_codec_is_the_one_given_or_the_checkpoints_or_the_datas(
    base: Path, tmp_path: Path
) -> None:
    """Where all make the same codes."""
    newer = other_codec(tmp_path / "newer", "decoder")
    old, new = data(tmp_path / "old", []), data(tmp_path / "new", [], codec=newer)
    assert codec_of([new, old], None, str(base)) == (describe_codec(str(newer)), f"{new}/codec")
    own = (read_info(CHECKPOINT).codec, str(CHECKPOINT / "codec"))
    assert codec_of([new, old], None, str(CHECKPOINT)) == own
    given = (describe_codec(str(newer)), str(newer))
    assert codec_of([old], str(newer), str(CHECKPOINT)) == given


def test_a_model_folder_without_its_codec_has_that_of_the_same_weights(tmp_path: Path) -> None:
    """As a run's `step-N/model` is, from which a user goes on."""
    bare = shutil.copytree(CHECKPOINT, tmp_path / "model", ignore=shutil.ignore_patterns("codec"))
    newer = other_codec(tmp_path / "newer", "decoder")
    old, new = data(tmp_path / "old", []), data(tmp_path / "new", [], codec=newer)
    own = read_info(CHECKPOINT).codec
    assert codec_of([new, old], None, str(bare)) == (own, f"{old}/codec")
    given = (describe_codec(str(newer)), str(newer))
    assert codec_of([old], str(newer), str(bare)) == given
    with pytest.raises(ValueError, match=r"--model .*model: there is no .*model/codec: .* Copy "):
        codec_of([new], str(newer), str(bare))


def test_a_codec_of_other_codes_is_refused_wherever_it_comes_from(
    base: Path, tmp_path: Path
) -> None:
    wrong = other_codec(tmp_path / "wrong", "encoder")
    good, bad = data(tmp_path / "good", []), data(tmp_path / "bad", [], codec=wrong)
    for locations, codec, model, message in (
        ([good, bad], None, base, "--data .*bad was encoded with another codec .*both with the"),
        ([bad], None, CHECKPOINT, "--data .*bad was .*than --model .*with the checkpoint's codec"),
        ([good], str(wrong), base, "--data .*good was .* than --codec .*wrong"),
        ([bad], str(wrong), CHECKPOINT, "--model .* generates codes of another codec"),
    ):
        with pytest.raises(ValueError, match=message):
            codec_of(locations, codec, str(model))


def test_tags_are_those_asked_for_else_those_that_the_data_kept(tmp_path: Path) -> None:
    written = data(tmp_path / "written", [])
    kept = data(tmp_path / "kept", ["<sigh>", "<laugh>"], "en")
    assert tags_of([written], None) == []
    assert tags_of([written, kept], None) == ["<laugh>", "<sigh>"]
    assert tags_of([written, kept], ["<sigh>"]) == ["<sigh>"]
    with pytest.raises(ValueError, match=r"--tags <cough>: --data .*kept was normalized"):
        tags_of([written, kept], ["<cough>"])


@pytest.mark.slow
def test_a_base_gets_tags_as_tokens_and_a_checkpoint_has_its_own(base: Path) -> None:
    codec = describe_codec(str(CODEC))
    info, tokenizer, extends = plan_checkpoint(str(base), codec, ["<laugh>"])
    assert (info.tags, extends) == (["<laugh>"], True)
    model, again = open_model(str(base), info, 0, None, lora_rank=0)
    assert model.layout == info.token_layout
    laugh = again.convert_tokens_to_ids("<laugh>")
    assert tokenizer.convert_tokens_to_ids("<laugh>") == laugh == info.layout.start_id - 1
    with pytest.raises(ValueError, match=r"--tags <laugh>: .*has no tags; new tags need a base"):
        plan_checkpoint(str(CHECKPOINT), codec, ["<laugh>"])


@pytest.mark.slow
def test_adapters_train_the_tables_of_a_base_alone(base: Path, checkpoint: Path) -> None:
    for source in (base, checkpoint):
        info, _, extends = plan_checkpoint(str(source), describe_codec(str(CODEC)))
        model, _ = open_model(str(source), info, 0, None, lora_rank=2)
        assert extends == (source == base)
        assert all(table.requires_grad == extends for table in model.tables)


@pytest.mark.parametrize(
    ("token", "config", "message"),
    [
        ("<|c1_0|>", {}, "OuteTTS 1.0, whose codec is DAC"),
        ("<|speech_0|>", {}, "NeuTTS, whose codec is NeuCodec"),
        ("a", {"model_type": "lfm2", "vocab_size": 80_539}, "as Kani-TTS has"),
    ],
)
def test_a_model_of_another_codec_is_no_base(
    base: Path, tmp_path: Path, token: str, config: dict[str, Any], message: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(base, model)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"content": token, "id": 999})
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    own = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(ValueError, match=f"--model {model}: .*{message}"):
        plan_checkpoint(str(model), describe_codec(str(CODEC)))


@pytest.mark.parametrize("wrong", ["", "<laugh", "a b", "<>", "</laugh>", "<1>"])
def test_what_no_tag_can_be_is_refused(wrong: str) -> None:
    arguments = {"input": "x", "output": "/y"}
    assert EncodeConfig(**arguments, tags=["laugh", "<sigh>"]).tags == ["<laugh>", "<sigh>"]
    with pytest.raises(ValueError, match="expected a tag"):
        EncodeConfig(**arguments, tags=[wrong])


def test_a_checkpoint_on_the_hub_is_fine_tuned_as_one_and_a_base_as_before(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, as they lie in the hub's cache."""
    for name, source in (("voice", CHECKPOINT), ("base", base)):
        model = tmp_path / f"models--someone--{name}"
        shutil.copytree(source, model / "snapshots" / "rev")
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text("rev")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    located = hub.located_with(model_source("someone/voice"), INFO_FILE)
    info, _, extends = plan_checkpoint(located, read_info(CHECKPOINT).codec)
    assert not extends
    assert info.voices == read_info(CHECKPOINT).voices
    assert codec_of([], None, located)[1] == f"{located}/codec"
    model, _ = open_model("someone/voice", info, 0, None, lora_rank=0)
    assert model.layout == info.token_layout
    for other in ("someone/base", "someone/nothing", "no name/at all", str(base)):
        assert hub.located_with(other, INFO_FILE) == other


@pytest.mark.parametrize("described", [False, True])
def test_a_prompt_keeps_the_description_of_its_voice(tmp_path: Path, described: bool) -> None:
    """Of a model whose speakers are described in words, which has no list of them."""
    how = "An old man, hoarse and/or tired, " * 20
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"text": "Hello there.", "speaker": how}))
    (prompt,) = eval_prompts(str(path), [], described=described)
    assert prompt.speaker == (how.strip() if described else None)
    model, codec = read_info(CHECKPOINT), load_codec(str(CODEC))
    samples = EvalSamples([prompt], model, cast(Any, None), codec, None, 1.0, output=str(tmp_path))
    spoken = EvalSample(sample_name(0, prompt), prompt, np.zeros(100, np.float32), True)
    samples.write([spoken], 1, open_trackers([], str(tmp_path), {}, 0))
    (written,) = (tmp_path / "samples" / "step-000001").iterdir()
    assert written.name == f"{spoken.name}.wav"
