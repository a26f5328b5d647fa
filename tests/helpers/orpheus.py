"""Checkpoints of the Orpheus family with random weights and few base tokens.

The tokenizer has a byte for each character, and ids with gaps, as those of padded tables have: its
number of tokens says nothing about its ids.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from sheen.codec.layout import TokenLayout

FIRST = 300
"""The id of <custom_token_0>, which a real Llama has at 128256."""
CUSTOM_TOKENS = 28_683
LAYOUT = TokenLayout(FIRST, 4096, (4, 2, 1), "orpheus")
LLAMA = {
    "<|begin_of_text|>": 260,
    "<|end_of_text|>": 261,
    "<|finetune_right_pad_id|>": 264,
    "<|eot_id|>": 269,
    "<|audio|>": FIRST + CUSTOM_TOKENS,
}
QWEN = {"<|endoftext|>": 260, "<|im_start|>": 261, "<|im_end|>": 262}
LFM = {"<|startoftext|>": 257, "<|im_end|>": 263}
POSITIONS = 1024
SOS, EOS, SOH, EOH, SOA, EOA = range(FIRST + 1, FIRST + 7)
BOS, EOT, AUDIO = (LLAMA[f"<|{name}|>"] for name in ("begin_of_text", "eot_id", "audio"))
ROWS: Mapping[str, tuple[list[int], str, list[int], list[int]]] = {
    "orpheus": ([SOH, BOS], "{voice}: {text}", [EOT, EOH, SOA, SOS], [EOA]),
    "maya1": (
        [BOS, SOH, BOS], '<description="{voice}"> {text}', [EOT, EOH, SOA, SOS], [EOA]
    ),
    "veena": ([SOH], "<spk_{voice}> {text}", [EOH, SOA, SOS], [EOA]),
    "svara": ([BOS, SOH, AUDIO], "{voice}: {text}", [EOH, EOT, SOA, SOS], [EOA, EOT]),
    "vyvo-qwen3": ([SOH], "{voice}: {text}", [QWEN["<|im_end|>"], EOH, SOA, SOS], [EOA]),
}  # fmt: skip
"""Of each form what is before a text, the text, what is before the codes, and after EOS."""


def words(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def tokenizer(
    special: Mapping[str, int] = LLAMA,
    custom_tokens: int = CUSTOM_TOKENS,
    first: int = FIRST,
    tags: Mapping[str, int] = MappingProxyType({}),
) -> PreTrainedTokenizerFast:
    """A begin token is put before every text where there is one. Custom tokens are no special ones,
    as the family's recipes add them."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    customs = [f"<custom_token_{number}>" for number in range(custom_tokens)]
    vocabulary = {letter: number for number, letter in enumerate(sorted(letters))}
    vocabulary |= {**special, **tags}
    vocabulary |= {name: first + number for number, name in enumerate(customs)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in tags])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in customs])
    begin = next(
        (name for name in special if name in ("<|begin_of_text|>", "<|startoftext|>")), None
    )
    if begin is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, special[begin])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=begin,
        eos_token="<|eot_id|>" if "<|eot_id|>" in special else None,
    )


def config(kind: Any = LlamaConfig, **changes: Any) -> Any:
    rows = -(-(FIRST + CUSTOM_TOKENS + 1) // 64) * 64
    fields: dict[str, Any] = {
        "vocab_size": rows,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 261,  # which is no end of speech, as in the published ones
    }
    return kind(**(fields | changes))


def save(
    folder: Path, form: str = "orpheus", *, scale: float = 4.0, end: float = 1.0, **changes: Any
) -> None:
    """A checkpoint that a form fits, as `save_pretrained` leaves it. `scale`: of its weights; as
    transformers draws them, attention is nearly even. `end`: of the row that ends speech."""
    qwen = form.startswith("vyvo")
    torch.manual_seed(0)
    kinds: Any = (Qwen3Config, Qwen3) if qwen else (LlamaConfig, LlamaForCausalLM)
    model = kinds[1](config(kinds[0], **changes))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(scale)
        model.get_output_embeddings().weight[LAYOUT.end_id] *= end
    model.save_pretrained(folder)
    tokenizer(QWEN if qwen else LLAMA).save_pretrained(folder)
