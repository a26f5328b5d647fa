"""The body laid out for decoding: the base's own states, from known layers only."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from helpers.utterances import LAYOUT
from sheen.lm.attention.slots import Rows, SlotSpan
from sheen.lm.cache.kv_cache import CacheShape, PagedCache
from sheen.lm.cpu_kernels import PackedBody, PackedLinear, pack_linears
from sheen.lm.model import SpeechLM

SHAPE: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
WINDOWED = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2 = {key: size for key, size in SHAPE.items() if key != "head_dim"}
CONFIGS = {
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "qwen3 with windows": Qwen3Config(**SHAPE, **WINDOWED),
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama with yarn": LlamaConfig(**SHAPE, rope_parameters=YARN),
    "qwen2": Qwen2Config(**QWEN2 | {"hidden_size": 64}),
}


def base(config: Any) -> PreTrainedModel:
    """Weights of no special value: norms differ from one, and biases from zero."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(deepcopy(config)).float().eval().requires_grad_(False)
    for name, weight in lm.named_parameters():
        if weight.ndim > 1:
            weight.mul_(5)
        else:
            weight.copy_(torch.rand(weight.shape) + ("norm" in name) * 0.5)
    return lm


def pass_over_slots(model: SpeechLM) -> list[torch.Tensor]:
    """Two prompts, a prompt's second chunk beside a token of the other, and tokens alone."""
    cache = PagedCache(CacheShape.of(model.lm), 3, 100, 6, torch.device("cpu"))
    cache.open(0, 100)
    cache.open(2, 100)
    ids = torch.randperm(140, generator=torch.Generator().manual_seed(1))
    found = []
    for spans in (
        [SlotSpan(2, 0, 20), SlotSpan(0, 0, 8)],
        [SlotSpan(0, 8, 1), SlotSpan(2, 20, 15)],
        [SlotSpan(2, 35, 1), SlotSpan(0, 9, 1)],
        [SlotSpan(2, 36, 1)],
    ):
        places = torch.cat([torch.arange(s.start, s.start + s.count) for s in spans])
        kept = [row for s in spans for row in cache.rows(s.slot, s.start, s.count)]
        rows = Rows(cache, torch.tensor(kept)[:, None] + cache.heads, spans)
        with torch.inference_mode():
            found.append(model.slot_states(ids[: len(kept)], places, rows))
        ids = ids[len(kept) :]
    return found


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_packed_body_has_the_states_of_the_bases_own_layers(config: Any) -> None:
    own, packed = SpeechLM(base(config), LAYOUT), SpeechLM(base(config), LAYOUT)
    pack_linears(own.lm.base_model)
    packed.freeze()
    assert PackedBody.fits(base(config).base_model)
    for states, expected in zip(pass_over_slots(packed), pass_over_slots(own), strict=True):
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_frozen_bases_own_forward_is_what_it_was(config: Any) -> None:
    lm = base(config)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        expected = lm(ids).logits
        model = SpeechLM(lm, LAYOUT)
        model.freeze()
        torch.testing.assert_close(lm(ids).logits, expected, rtol=1e-3, atol=1e-3)


def test_layers_with_adapters_are_not_packed() -> None:
    adapted = base(CONFIGS["qwen3"])
    assert PackedBody.fits(adapted.base_model)
    inject_adapter_in_model(LoraConfig(target_modules=["q_proj"], r=2), adapted)
    assert not PackedBody.fits(adapted.base_model)


def with_a_layer_of_its_own(lm: PreTrainedModel) -> PreTrainedModel:
    class Norm(torch.nn.RMSNorm):
        pass

    lm.base_model.layers[1].input_layernorm = Norm(SHAPE["hidden_size"])
    return lm


@pytest.mark.parametrize(
    "lm",
    [
        with_a_layer_of_its_own(base(CONFIGS["llama"])),
        base(LlamaConfig(**SHAPE, hidden_act="gelu")),
        base(LlamaConfig(**SHAPE | {"intermediate_size": 90})),
        base(
            LlamaConfig(
                **SHAPE, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            )
        ),
        base(MistralConfig(**SHAPE, sliding_window=8)),
        base(CONFIGS["llama"]).bfloat16(),
    ],
    ids=["a foreign norm", "gelu", "odd width", "dynamic rope", "mistral", "bfloat16"],
)
def test_other_layers_are_left_as_they_are(lm: PreTrainedModel) -> None:
    def kinds() -> list[type]:
        parts = lm.base_model.modules()
        return [type(part) for part in parts if type(part) not in (torch.nn.Linear, PackedLinear)]

    assert not PackedBody.fits(lm.base_model)
    before = kinds()
    model = SpeechLM(lm, LAYOUT)
    model.freeze()
    assert kinds() == before
    assert all(torch.isfinite(states).all() for states in pass_over_slots(model))
