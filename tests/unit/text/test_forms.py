"""Prompt forms of others, id for id; and no text becomes a control token."""

from functools import cache
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import orpheus
from helpers.orpheus import BOS, EOH, EOT, FIRST, ROWS, SOA, SOH, SOS, words
from sheen.text.forms import FORMS, VYVO_LFM2, FormName, PromptForm, plain_encoder
from sheen.text.prompt import PromptTemplate, normalize

made = cache(orpheus.tokenizer)


@pytest.fixture(scope="module")
def llama() -> Any:
    return made()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return orpheus.tokenizer(orpheus.QWEN)


@pytest.mark.parametrize("name", get_args(FormName))
def test_a_forms_prompt_has_the_published_ids(name: FormName, llama: Any, qwen: Any) -> None:
    tokenizer = qwen if name == "vyvo-qwen3" else llama
    template = FORMS[name].template(tokenizer, FIRST)
    before, form, after, tail = ROWS[name]
    text = form.format(voice="tara", text="hi")
    assert template.ids("  hi \n", "tara") == before + words(tokenizer, text) + after
    assert list(template.tail) == tail
    assert list(template.after[-template.learned :]) == [SOA, SOS]
    if FORMS[name].description is None:
        assert template.ids("hi") == before + words(tokenizer, "hi") + after
        told = words(tokenizer, text.replace("hi", "say it loud\nhi"))
        assert template.ids("hi", "tara", " say it\n loud ") == before + told + after
    with pytest.raises(ValueError, match="the text is empty"):
        template.ids(" \n", "tara")


def test_the_form_of_lfm2_is_known() -> None:
    tokenizer = orpheus.tokenizer(orpheus.LFM)
    begin, end = orpheus.LFM.values()
    ids = VYVO_LFM2.template(tokenizer, FIRST).ids("hi", "ann")
    assert ids == [SOH, begin, *words(tokenizer, "ann: hi"), end, EOH, SOA, SOS]


def test_a_description_stays_inside_its_quotation_marks(llama: Any) -> None:
    form = FORMS["maya1"]
    assert form.words("hi", 'deep "old" man') == "<description=\"deep 'old' man\"> hi"
    assert form.words("hi", None) == f'<description="{form.description}"> hi'
    # A recording says who speaks: nothing may contradict it.
    assert form.words("hi", "") == "hi"
    # What says how is a description too.
    assert form.words("hi", None, "a \n child") == '<description="a child"> hi'
    assert form.words("hi", "a child", '"loud"') == "<description=\"a child 'loud'\"> hi"


@pytest.mark.slow
def test_a_speaker_that_is_a_token_of_its_own_is_one(llama: Any) -> None:
    tokenizer = orpheus.tokenizer()
    tokenizer.add_tokens(["<spk_kavya>"], special_tokens=True)
    speaker = tokenizer.convert_tokens_to_ids("<spk_kavya>")
    template = FORMS["veena"].template(tokenizer, FIRST)
    assert template.ids("hi", "kavya") == [SOH, speaker, *words(llama, " hi"), EOH, SOA, SOS]
    assert template.ids("<spk_kavya> hi", "kavya").count(speaker) == 1
    assert speaker not in FORMS["orpheus"].template(tokenizer, FIRST).ids("<spk_kavya> hi")


LITERALS = [
    "<custom_token_3>", "<custom_token_28682>", "<|eot_id|>", "<|begin_of_text|>", "<|audio|>",
    "say <custom_token_10><custom_token_2> now",
]  # fmt: skip


@cache
def template() -> PromptTemplate:
    return FORMS["orpheus"].template(made(), FIRST)


@given(
    text=st.lists(st.sampled_from([*LITERALS, "a", " ", "<laugh>", "custom", "_token_3>"])).map(
        "".join
    )
)
@example("".join(LITERALS))
def test_no_text_becomes_a_control_token(text: str) -> None:
    """`split_special_tokens` alone leaves <custom_token_3> whole: it was not added as special."""
    for spoken, speaker in ((f"x{text}", "tara"), ("hi", f"x{text}")):
        ids = template().ids(spoken, speaker)
        inner = ids[2:-4]
        assert max(inner) < min(orpheus.LLAMA.values()), "letters alone"
        assert normalize(f"x{text}") in made().decode(inner)
        assert ids[:2] == [SOH, BOS]
        assert ids[-4:] == [EOT, EOH, SOA, SOS]


@pytest.mark.slow
def test_a_tag_that_was_added_to_a_checkpoint_stays_a_token(llama: Any) -> None:
    tokenizer = orpheus.tokenizer()
    tokenizer.add_tokens(["<whistle>"])
    tag = tokenizer.convert_tokens_to_ids("<whistle>")
    assert tag in FORMS["orpheus"].template(tokenizer, FIRST).ids("oh <whistle> yes", "tara")


@pytest.mark.slow
def test_tokens_that_a_base_added_stay_text(qwen: Any) -> None:
    tokenizer = orpheus.tokenizer({**orpheus.QWEN, "<think>": 265})
    assert 265 not in plain_encoder(tokenizer, FIRST)("so <think> hm")


@pytest.mark.slow
def test_tags_of_a_checkpoint_that_stand_before_its_codes_stay_tokens(qwen: Any) -> None:
    """As in an export, whose tags were added before Sheen's tokens."""
    tokenizer = orpheus.tokenizer(orpheus.QWEN, tags={"<laugh>": 265})
    encode = plain_encoder(tokenizer, FIRST, ["<laugh>"])
    letters = words(qwen, "ha "), words(qwen, " ha")
    assert encode("ha <laugh> ha") == [*letters[0], 265, *letters[1]]
    assert 265 not in plain_encoder(tokenizer, FIRST)("ha <laugh> ha")


def test_a_tokenizer_without_the_forms_tokens_is_refused(qwen: Any) -> None:
    with pytest.raises(ValueError, match=r"no <\|begin_of_text\|>"):
        FORMS["orpheus"].template(qwen, FIRST)


def test_every_form_ends_where_speech_starts() -> None:
    form: PromptForm
    for form in [*FORMS.values(), VYVO_LFM2]:
        assert form.row[-2:] == ("SOA", "SOS")
        assert form.row.count("TEXT") == 1
