"""The prompt: one template for training and serving, and text that stays text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sheen.codec.layout import TokenLayout
from sheen.lm.model import extend
from sheen.lm.model_files import load_base
from sheen.text.prompt import normalize, prompt_text, speaker_text


@pytest.fixture(scope="module")
def extended(base, tmp_path_factory) -> tuple[PreTrainedTokenizerBase, TokenLayout]:  # type: ignore[no-untyped-def]
    """A tokenizer with the codec's tokens, written and read again."""
    lm, tokenizer = load_base(str(base))
    layout = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0).layout
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder), layout


def test_a_prompt_is_the_speaker_and_the_normalized_text() -> None:
    assert prompt_text("four two", None) == "four two"
    assert prompt_text(" four \t two\n", "heart") == "heart: four two"
    assert prompt_text("cafe\u0301", None) == "caf\u00e9"
    with pytest.raises(ValueError, match="empty"):
        prompt_text(" \n", "heart")


def test_an_instruction_is_the_line_before_the_text() -> None:
    """And no text can pass itself off as one."""
    assert prompt_text("four two", "heart", " so that\n all hear ") == (
        "heart: so that all hear\nfour two"
    )
    assert prompt_text("loud\nfour", None, "slow") == "slow\nloud four"
    for none in ("", " \n", None):
        assert prompt_text("loud\nfour", "heart", none) == "heart: loud four"
    with pytest.raises(ValueError, match="empty"):
        prompt_text(" ", "heart", "loud")


@given(st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once
    assert once == once.strip()
    assert "  " not in once


def test_nothing_stands_between_text_and_audio_start(
    extended: tuple[PreTrainedTokenizerBase, TokenLayout],
) -> None:
    tokenizer, layout = extended
    ids = speaker_text(tokenizer, layout.start_id).ids("four two", "heart")
    assert ids[-1] == layout.start_id
    assert tokenizer.decode(ids[:-1]) == "heart: four two"


def test_a_tag_is_one_token_before_the_codecs(base: Path, tmp_path: Path) -> None:
    lm, tokenizer = load_base(str(base))
    known = len(tokenizer)
    layout = extend(lm, tokenizer, 4096, (4, 2, 1), seed=0, tags=["<laugh>", "<sigh>"]).layout
    assert layout.first_id == known + 2
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    ids = speaker_text(again, layout.start_id).ids("four <laugh> two<sigh> <cough>", "slt")
    assert [ids.count(token) for token in (known, known + 1)] == [1, 1]
    assert max(ids[:-1]) == known + 1
    assert again.decode(ids[:-1]) == "slt: four <laugh> two<sigh> <cough>"


@pytest.mark.parametrize("literal", ["<audio_start>", "<audio_end>", "<snac_0_0>", "<eos>"])
def test_a_literal_token_in_a_text_or_a_name_stays_text(
    extended: tuple[PreTrainedTokenizerBase, TokenLayout], literal: str
) -> None:
    tokenizer, layout = extended
    for text, speaker in [(f"say {literal} now", None), ("one", literal)]:
        ids = speaker_text(tokenizer, layout.start_id).ids(text, speaker)
        assert ids.count(layout.start_id) == 1
        assert all(i < layout.first_id for i in ids[:-1])
        assert tokenizer.convert_tokens_to_ids("<eos>") not in ids
        assert literal in tokenizer.decode(ids[:-1])


def test_a_base_with_a_begin_token_gets_it(
    extended: tuple[PreTrainedTokenizerBase, TokenLayout],
) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer, layout = extended
    plain = speaker_text(tokenizer, layout.start_id).ids("one")
    tokenizer.bos_token = "<eos>"
    begin = tokenizer.convert_tokens_to_ids("<eos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", begin)]
    )
    assert speaker_text(tokenizer, layout.start_id).ids("one") == [begin, *plain]


def test_a_tokenizer_reads_each_text_once(
    extended: tuple[PreTrainedTokenizerBase, TokenLayout], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, layout = extended
    speaker_text(tokenizer, layout.start_id).ids("one")
    read: list[str] = []
    call = type(tokenizer).__call__

    def counted(self: PreTrainedTokenizerBase, text: str, **named: object) -> object:
        read.append(text)
        return call(self, text, **named)

    monkeypatch.setattr(type(tokenizer), "__call__", counted)
    for text in ("two", "three"):
        speaker_text(tokenizer, layout.start_id).ids(text)
    assert read == ["two", "three"]
