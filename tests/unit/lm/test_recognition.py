"""Checkpoints that others trained: recognized by their tokens, and look-alikes refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import orpheus
from helpers.example import CODEC
from sheen.codec.info import describe_codec
from sheen.codec.layout import TokenLayout
from sheen.lm.checkpoint import CheckpointInfo, write_info
from sheen.lm.model_files import load_model, save_model
from sheen.lm.recognition import (
    choose_form,
    describe_checkpoint,
    find_layout,
    recognize,
)

Made = Callable[[str, Callable[[Path], None]], Path]
SNAC = describe_codec(str(CODEC))


@pytest.fixture(scope="module")
def folder(made_once: Made) -> Path:
    return made_once("orpheus", orpheus.save)


@pytest.fixture(scope="module")
def vyvo(made_once: Made) -> Path:
    return made_once("vyvo-qwen3", lambda folder: orpheus.save(folder, "vyvo-qwen3"))


def test_a_bare_checkpoint_is_recognized_and_its_form_named(folder: Path) -> None:
    info = describe_checkpoint(str(folder), form="orpheus", codec=str(CODEC))
    assert info.token_layout == TokenLayout(orpheus.FIRST, 4096, (4, 2, 1), "orpheus")
    assert info.prompt.name == "orpheus"
    assert info.softmax == "full"
    assert info.voices[:2] == ["tara", "leah"], "as its makers list them"
    assert info.imported
    assert "<laugh>" in info.tags
    assert info.sampling is not None
    assert (info.sampling.temperature, info.sampling.repetition_window) == (0.6, 64)
    assert (info.codec.embedded, info.codec.source) == (False, str(CODEC))
    assert info.max_seq_len == orpheus.POSITIONS
    # The record is a checkpoint's like any other.
    assert CheckpointInfo.model_validate_json(info.model_dump_json()) == info


@pytest.mark.slow
def test_what_the_tokens_say_needs_no_name(vyvo: Path) -> None:
    info = recognize(str(vyvo), SNAC)
    assert info is not None
    assert info.prompt.name == "vyvo-qwen3"
    assert info.voices == []


@pytest.mark.slow
def test_a_form_that_the_tokens_do_not_say_has_to_be_named(folder: Path, vyvo: Path) -> None:
    with pytest.raises(ValueError, match=r"give the form: orpheus, maya1, veena, svara$"):
        recognize(str(folder), SNAC)
    with pytest.raises(ValueError, match=r"form vyvo-qwen3: .* fit: orpheus, maya1"):
        recognize(str(folder), SNAC, "vyvo-qwen3")
    with pytest.raises(ValueError, match=r"form orpheus: .* fit: vyvo-qwen3"):
        recognize(str(vyvo), SNAC, "orpheus")
    with pytest.raises(ValueError, match=r"form 'orfeus': expected one of orpheus, maya1"):
        recognize(str(folder), SNAC, "orfeus")


@pytest.mark.slow
def test_a_file_of_inspect_says_what_the_folder_does_not(folder: Path, tmp_path: Path) -> None:
    info = describe_checkpoint(str(folder), form="svara", codec=str(CODEC))
    info.voices = ["ann"]
    write_info(tmp_path, info)
    path = str(tmp_path / "sheen.json")
    assert describe_checkpoint(str(folder), info=path) == info
    with pytest.raises(ValueError, match="trained with 'svara'; omit the form"):
        describe_checkpoint(str(folder), info=path, form="orpheus")


def test_a_base_without_speech_tokens_is_no_checkpoint(base: Path) -> None:
    assert recognize(str(base), SNAC) is None
    with pytest.raises(ValueError, match="is not a Sheen checkpoint"):
        describe_checkpoint(str(base), codec=str(CODEC))
    with pytest.raises(ValueError, match=r"form orpheus: .* no <custom_token_0>"):
        recognize(str(base), SNAC, "orpheus")


LLAMA, LFM = SimpleNamespace(model_type="llama"), SimpleNamespace(model_type="lfm2")


def customs(count: int, first: int = 300) -> dict[str, int]:
    return {f"<custom_token_{number}>": first + number for number in range(count)}


@pytest.mark.parametrize(
    ("vocabulary", "model_type", "rows", "message"),
    [
        (customs(16_395), "lfm2", 80_800, "16,395 custom tokens: its codec is Mimi"),
        (customs(16_139), "lfm2", 80_538, "16,139 custom tokens: its codec is NeMo's"),
        ({"a": 1}, "lfm2", 80_539, "its codec is NeMo's nano codec.*Kani"),
        ({"<|c1_0|>": 9}, "llama", 1, "OuteTTS 1.0, whose codec is DAC"),
        ({"<|speech_0|>": 9}, "qwen2", 1, "NeuTTS, whose codec is NeuCodec"),
        (customs(28_682), "llama", 29_000, "28,682 custom tokens, .* has 28,683"),
        (customs(28_684), "llama", 29_000, "28,684 custom tokens, .* has 28,683"),
        (customs(28_683) | {"<custom_token_7>": 9}, "llama", 29_000, "are not consecutive"),
    ],
)
def test_what_looks_alike_is_refused_by_name(
    vocabulary: dict[str, int], model_type: str, rows: int, message: str
) -> None:
    config = SimpleNamespace(model_type=model_type, vocab_size=rows)
    with pytest.raises(ValueError, match=message):
        find_layout(vocabulary, config, SNAC)


def test_another_codec_than_the_familys_is_refused() -> None:
    other = SNAC.model_copy(update={"config": SNAC.config | {"vq_strides": [8, 4, 2, 1]}})
    config = SimpleNamespace(model_type="llama", vocab_size=29_000)
    with pytest.raises(ValueError, match="a codec with 15 x 4,096 codes per frame has 61,451"):
        find_layout(customs(28_683), config, other)


@pytest.mark.slow
def test_lfm2_is_refused_with_its_reason(tmp_path: Path) -> None:
    orpheus.tokenizer(orpheus.LFM).save_pretrained(tmp_path)
    fields: dict[str, Any] = {"model_type": "lfm2", "vocab_size": 29_056, "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"vyvo-lfm2.*convolutions would need a state"):
        recognize(str(tmp_path), SNAC)


@pytest.mark.slow
def test_a_table_that_does_not_hold_the_tokens_is_refused(tmp_path: Path) -> None:
    orpheus.tokenizer().save_pretrained(tmp_path)
    orpheus.config(vocab_size=20_000).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"20000 rows, .* reach to 28982"):
        recognize(str(tmp_path), SNAC, "orpheus")


def test_only_one_form_fits_a_tokenizer_of_qwen() -> None:
    assert choose_form({"<|im_end|>": 1}, None) == "vyvo-qwen3"
    with pytest.raises(ValueError, match="none that is known"):
        choose_form({"a": 1}, None)


@pytest.mark.slow
def test_a_head_that_is_stored_apart_is_used(folder: Path, tmp_path: Path) -> None:
    """Whatever the config says of tying: some repositories of the family hold both tables."""
    layout = TokenLayout(orpheus.FIRST, 4096, (4, 2, 1), "orpheus")
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, tokenizer = load_model(tmp_path, layout)
    assert len(model.tables) == 2
    torch.testing.assert_close(model.head, weights["lm_head.weight"])
    save_model(model, tokenizer, tmp_path / "again")
    again, _ = load_model(tmp_path / "again", layout)
    torch.testing.assert_close(again.head, weights["lm_head.weight"])
    assert len(load_model(folder, layout)[0].tables) == 1
