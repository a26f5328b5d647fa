"""Language models of a few thousand parameters, one of each family."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from helpers.utterances import LAYOUT, prompts, utterances
from sheen.codec.layout import Softmax
from sheen.lm.batching import Batch, collate
from sheen.lm.model import SpeechLM

VOCABULARY = 160  # the layout's 148 ids and some padding
WINDOW = 8
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "qwen3": Qwen3Config(**SMALL, tie_word_embeddings=True),
    "llama": LlamaConfig(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=WINDOW),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128),
}
TEXTS, FRAMES = (4, 9, 2), (2, 5, 1)
LENGTHS = [19, 45, 10]


def small_lm(config: Any) -> PreTrainedModel:
    """Weights five times as large as transformers draws them, so that attention is not even."""
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(deepcopy(config)).float().eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(5)
    return lm


def small_model(family: str, softmax: Softmax = "masked") -> SpeechLM:
    return SpeechLM(small_lm(FAMILIES[family]), LAYOUT, softmax)


def three_utterances() -> tuple[list[list[int]], list[np.ndarray]]:
    return prompts(*TEXTS), utterances(*FRAMES)


def packed() -> Batch:
    batch = collate(*three_utterances(), LAYOUT, pad_id=0)
    assert list(batch.segments.lengths) == LENGTHS
    return batch


def graphs_compiled(model: SpeechLM) -> list[torch.fx.GraphModule]:
    """Compile the layers as training does; each graph that torch makes of them joins the list."""
    compiled: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    base: Any = model.lm.base_model
    for layer in base.layers:
        layer.compile(backend=backend)
    return compiled
