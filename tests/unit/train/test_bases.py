"""Bases that others made: what cannot be taught is refused in one line, before a worker starts.

Through the job's door: a folder in, one line and exit status 2 out, and no output folder.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from helpers.example import CODEC, ROOT, load_script
from sheen.codec.layout import TokenLayout
from sheen.lm import base_model
from sheen.lm.model import extend
from sheen.train.data import build_training_set, describe

GIVEN = Path(__file__).parent / "bases"
LINE = '{"text": "one", "snac_codes": [[1], [1, 2], [1, 2, 3, 4]]}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
SMALL: dict[str, Any] = {
    "vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256,
}  # fmt: skip

main = load_script(ROOT / "jobs" / "train.py").main


def given(name: str, folder: Path) -> Path:
    """A copy of bases/NAME, with a byte tokenizer and weights where it lacks them."""
    shutil.copytree(GIVEN / "stablelm", folder)
    shutil.copytree(GIVEN / name, folder, dirs_exist_ok=True)
    save_file({"lm.weight": torch.zeros(1)}, folder / "model.safetensors")
    return folder


def family(name: str, folder: Path, **changes: Any) -> Path:
    given("stablelm", folder)
    getattr(transformers, f"{name}Config")(**changes).save_pretrained(folder)
    return folder


def whole(folder: Path) -> Path:
    """A base that nothing is wrong with."""
    given("stablelm", folder)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(folder)
    return folder


def replaced(name: str, data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (whole(folder) / name).write_bytes(data)
        return folder

    return make


def sharded_without_its_second_part(folder: Path) -> Path:
    parts = {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}
    (whole(folder) / "model.safetensors").rename(folder / parts["a"])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    return folder


def without_weights(folder: Path) -> Path:
    (whole(folder) / "model.safetensors").unlink()
    return folder


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "several modalities": (lambda f: given("gemma3-multimodal", f), "'gemma3' is multimodal"),
    "several modalities, another": (lambda f: family("Qwen2VL", f), "'qwen2_vl' is multimodal"),
    "ALiBi": (lambda f: family("Bloom", f), "'bloom' states no longest sequence"),
    "recurrent": (lambda f: family("Mamba", f), "'mamba' states no longest sequence"),
    "encoder and decoder": (lambda f: family("T5", f), "'t5' is not a decoder-only"),
    "attention of its own": (lambda f: given("stablelm", f), "StableLmAttention of the base"),
    "mixes a row": (lambda f: family("Falcon", f), "'falcon' mixes utterances"),
    "recurrent in part": (lambda f: family("Jamba", f), "'jamba' mixes utterances"),
    "attention sinks": (lambda f: family("GptOss", f), "'s_aux'"),
    "a scaled head": (lambda f: family("Cohere", f), "'cohere' computes logits other than"),
    "of one layer": (
        lambda f: family("Gemma2", f, num_hidden_layers=1),
        "'gemma2' computes logits other than",
    ),
    "quantized": (lambda f: given("bnb-4bit", f), "quantized (bitsandbytes)"),
    "ids with gaps": (lambda f: given("ids-with-holes", f), "258 tokens and ids up to 510"),
    "weights not fetched": (replaced("model.safetensors", POINTER), "a Git LFS pointer"),
    "tokenizer not fetched": (replaced("tokenizer.json", POINTER), "a Git LFS pointer"),
    "config not fetched": (replaced("config.json", POINTER), "a Git LFS pointer"),
    "torn weights": (replaced("model.safetensors", b"\x10\0\0"), "not a complete file of weights"),
    "a part is missing": (sharded_without_its_second_part, "model-00002.safetensors is missing"),
    "no weights": (without_weights, "it has no weights"),
}


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "codes.jsonl"
    path.write_text(LINE * 3)
    return path


def flags(data: Path, model: Path, output: Path, **more: Any) -> list[str]:
    words = {"--data": data, "--model": model, "--output": output, "--codec": CODEC} | {
        f"--{name}": value for name, value in more.items()
    }
    return [str(word) for pair in words.items() for word in pair]


@pytest.mark.parametrize("kind", REFUSED)
def test_a_base_that_cannot_be_taught_is_refused_in_one_line(
    kind: str, lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = REFUSED[kind]
    model = make(tmp_path / "base")
    capsys.readouterr()
    assert main(flags(lines, model, tmp_path / "out")) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]
    assert f"--model {model}" in said[0]
    assert not (tmp_path / "out").exists()


def test_a_base_that_can_be_taught_passes(tmp_path: Path) -> None:
    base_model.check_files(whole(tmp_path / "base"))
    assert base_model.check_config(LlamaConfig(**SMALL)) == 256


def test_new_ids_never_fall_on_used_ones(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(GIVEN / "ids-with-holes")
    with pytest.raises(ValueError, match="ids have gaps"):
        extend(LlamaForCausalLM(LlamaConfig(**SMALL)), tokenizer, 4096, (4, 2, 1), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(GIVEN / "stablelm")
    assert base_model.first_new_id(tokenizer) == max(tokenizer.get_vocab().values()) + 1


def test_a_codec_that_was_not_fetched_is_refused_in_one_line(
    lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(CODEC, tmp_path / "codec")
    (tmp_path / "codec" / "pytorch_model.bin").write_bytes(POINTER)
    words = flags(lines, whole(tmp_path / "base"), tmp_path / "out", codec=tmp_path / "codec")
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert "a Git LFS pointer" in said[0]
    assert not (tmp_path / "out").exists()


def test_characters_that_a_tokenizer_does_not_know_are_counted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "codes.jsonl"
    texts = ("one two", "да", "two но")
    path.write_text("".join(LINE.replace("one", text) for text in texts), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(GIVEN / "unknown-characters")
    layout = TokenLayout(base_model.first_new_id(tokenizer), 4096, (4, 2, 1))
    data, _ = build_training_set([str(path)], layout, tokenizer, 256, 0.0, 1, 0)
    assert data.summary["unknown_tokens"] == 4
    assert data.summary["texts_with_unknown_tokens"] == 2
    said = describe(data.summary)
    assert "4 tokens in 2 texts are <unk>" in said
    assert "'да'" in said


def test_a_text_must_not_have_an_audio_tokens_id(lines: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(GIVEN / "stablelm")
    with pytest.raises(ValueError, match=r"the id .* is an audio token"):
        build_training_set([str(lines)], TokenLayout(9, 4096, (4, 2, 1)), tokenizer, 99, 0, 1, 0)


def test_a_begin_token_that_is_the_unknown_one_too_is_no_unknown_character(tmp_path: Path) -> None:
    """As of OPT: `</s>` is both, and stands before every text."""
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    bare = Tokenizer(BPE(vocab=letters | {"</s>": 256}, merges=[], unk_token="</s>"))
    bare.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bare.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 256)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, bos_token="</s>", unk_token="</s>", eos_token="</s>"
    )
    path = tmp_path / "codes.jsonl"
    path.write_text(LINE, "utf-8")
    layout = TokenLayout(base_model.first_new_id(tokenizer), 4096, (4, 2, 1))
    data, _ = build_training_set([str(path)], layout, tokenizer, 256, 0.0, 1, 0)
    assert data.prompts[0] == 256
    assert data.summary["unknown_tokens"] == 0
