"""The base model that the voice starts from: its bytes and phonemes, its rows, its seed."""

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.example import ENGLISH, load_script

make_base = load_script(ENGLISH / "make_base.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    make_base.main(["--output", str(folder), "--hidden-size", "64", "--layers", "1"])
    return folder


def test_tokenizer_gives_any_text_back(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)

    @settings(database=None)
    @given(st.text())
    @example("four  two   seven ")
    @example("Grüße, 你好 🙂\t!\r\n do n't , stop .")
    def check(text: str) -> None:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.encode())

    check()


def test_a_phoneme_is_one_token_and_takes_its_stress_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_base.main(["--output", str(folder), "--hidden-size", "64", "--layers", "1", "--phonemes"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("ann: ˌI wˈɑnt “sˈɛvᵊn”!")["input_ids"]
    assert [tokenizer.decode(token) for token in ids] == [
        "a", "n", "n", ":", " ", "ˌI", " ", "w", "ˈɑ", "n", "t", " ", "“", "s", "ˈɛ", "v", "ᵊ", "n",
        "”", "!",
    ]  # fmt: skip
    for text in ("Grüße, 你好 🙂\t!\r\n", "ˈˈɛ ˌ ᵊᵻ …—", "ᵃ€ɏ"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == len(tokenizer)


def test_one_ascii_character_is_one_token_of_its_own(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [tokenizer.encode(chr(code)) for code in range(128)]
    assert all(len(ids) == 1 for ids in encoded)
    special = {tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert len({ids[0] for ids in encoded} | special) == 130
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")


def test_base_opens_with_the_auto_classes_and_has_a_row_per_token(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    inputs = tokenizer("four two", return_tensors="pt")
    assert model(**inputs).logits.shape == (1, 8, len(tokenizer))
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_seed_decides_the_weights() -> None:
    tokenizer = make_base.build_tokenizer()

    def first_row(seed: int) -> torch.Tensor:
        model = make_base.build_model(tokenizer, 64, 1, seed)
        weight: torch.Tensor = model.get_input_embeddings().weight
        return weight[0]

    assert torch.equal(first_row(0), first_row(0))
    assert not torch.equal(first_row(0), first_row(1))


def test_default_base_has_a_few_million_parameters() -> None:
    model = make_base.build_model(make_base.build_tokenizer(), 256, 6, 0)
    assert model.num_parameters() == 4_493_824


def test_base_refuses_a_width_that_heads_do_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        make_base.main(["--output", str(tmp_path / "model"), "--hidden-size", "100"])
    assert exit_info.value.code == 2
    assert "multiple of 64" in capsys.readouterr().err
