"""Guided attention: what it measures, of which utterance, and what its gradient moves."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config

from helpers.small_models import FAMILIES, SMALL, small_lm, small_model
from helpers.utterances import LAYOUT, prompts, utterances
from sheen.lm.attention.guidance import HEADS, WIDTH, Guide
from sheen.lm.batching import Batch, collate
from sheen.lm.model import SpeechLM


def row(texts: tuple[int, ...], frames: tuple[int, ...], pad_to: int = 0) -> Batch:
    return collate(prompts(*texts), utterances(*frames), LAYOUT, 0, pad_to)


def guide_of(model: SpeechLM, batch: Batch) -> Tensor:
    guide = model(batch, guided=True).guide
    assert guide is not None
    return guide


@pytest.mark.parametrize("family", ["qwen3", "llama", "gpt2"])
def test_guidance_measures_attention_to_the_text_about_where_speech_would_be(family: str) -> None:
    """Against the weights that transformers' own attention returns."""
    batch = row((9,), (5,))
    lm = small_lm(FAMILIES[family])
    lm.set_attn_implementation("eager")
    with torch.no_grad():
        weights = lm(batch.input_ids, output_attentions=True).attentions
        found = guide_of(small_model(family), batch)
    layer = len(weights) // 3
    asking = weights[layer][0, :HEADS, 8:-1]
    count = asking.shape[1]
    assert count == 5 * LAYOUT.tokens_per_frame + 1
    expected = 0.0
    for head in asking:
        for at, attention in enumerate(head):
            away = torch.arange(9) / 8 - at / (count - 1)
            near = torch.exp(-((away / WIDTH) ** 2) / 2)
            expected -= float((attention[:9] * near).sum().log()) / HEADS
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_utterances_of_a_row_are_measured_as_alone_and_padding_is_not() -> None:
    model = small_model("qwen3")
    texts, frames = (4, 9, 2), (2, 5, 1)
    alone = []
    for index in range(3):
        one = collate([prompts(*texts)[index]], [utterances(*frames)[index]], LAYOUT, 0)
        alone.append(float(guide_of(model, one).detach()))
    together = float(guide_of(model, row(texts, frames)).detach())
    assert together == pytest.approx(sum(alone), rel=1e-5)
    assert float(guide_of(model, row(texts, frames, pad_to=200)).detach()) == together
    nothing = guide_of(model, collate([], [], LAYOUT, 0, 16))
    assert float(nothing.detach()) == 0.0
    nothing.backward()  # a rank without work takes part in the exchange of gradients


def test_predictions_do_not_depend_on_guidance() -> None:
    model, batch = small_model("qwen3"), row((4, 9), (2, 5))
    plain, guided = model(batch), model(batch, guided=True)
    assert plain.guide is None
    assert torch.equal(plain.loss, guided.loss)


def test_the_gradient_of_guidance_moves_its_heads_to_the_text_and_no_layer_above() -> None:
    config = Qwen3Config(**SMALL | {"num_hidden_layers": 3})
    model = SpeechLM(small_lm(config), LAYOUT)
    batch = row((4, 9, 2), (2, 5, 1))
    guide_of(model, batch).backward()
    moved = {
        int(name.split("layers.")[1].split(".")[0])
        for name, part in model.named_parameters()
        if "layers." in name and part.grad is not None and part.grad.any()
    }
    assert moved == {0, 1}, "the layer at a third, and what feeds it"
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = float(guide_of(model, batch).detach())
    for _ in range(20):
        optimizer.zero_grad()
        guide_of(model, batch).backward()
        optimizer.step()
    assert float(guide_of(model, batch).detach()) < 0.7 * first


def test_a_base_whose_attention_has_no_number_is_refused() -> None:
    model, batch = small_model("qwen3"), row((4,), (2,))
    for module in model.lm.modules():
        if hasattr(module, "layer_idx"):
            module.layer_idx = None
    with pytest.raises(ValueError, match=r"'qwen3' does not show .*without --guided-attention"):
        model(batch, guided=True)
    assert Guide(model.lm, batch.prompts).layer == 0
