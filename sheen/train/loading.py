"""What a worker opens before its first step: the codec, and the model that is to learn.

Owns where that model comes from: a checkpoint as it is, or a base with rows for the codec's tokens,
and adapters on either. How it learns is the learner's business; which checkpoint a run goes on
from, the store's.
"""

from typing import Any, TypeAlias

import ray
from snac import SNAC
from torch import Tensor

from sheen.core import checkpoint, files
from sheen.core.model import SpeechLM, extend, load_base, load_model
from sheen.train.learner import add_adapters

CodecParts: TypeAlias = "ray.ObjectRef[tuple[dict[str, Any], dict[str, Tensor]]]"
"""A codec's arguments and weights, in the object store."""


def build_codec(parts: CodecParts) -> SNAC:
    """The codec, on the host."""
    arguments, weights = ray.get(parts)
    codec = SNAC(**arguments)
    codec.load_state_dict(weights)
    return codec


def open_model(
    source: str,
    info: checkpoint.CheckpointInfo,
    seed: int,
    codec: "CodecParts | None",
    *,
    lora_rank: int,
    lora_alpha: int,
) -> tuple[SpeechLM, Any]:
    """The model and its tokenizer; with new adapters unless `lora_rank` is 0.

    source: a checkpoint's or a base's folder or URI, or a base's hub id. codec: the new rows of a
    base follow its codebooks; without one they are independent. A checkpoint has its rows.
    """
    model, tokenizer = _with_tokens(source, info, seed, codec)
    if lora_rank:
        add_adapters(model, lora_rank, lora_alpha)
    return model, tokenizer


def _with_tokens(
    source: str, info: checkpoint.CheckpointInfo, seed: int, codec: "CodecParts | None"
) -> tuple[SpeechLM, Any]:
    """A checkpoint as it is, or a base with the codec's tokens added."""
    with files.local_folder(source) as folder:
        if checkpoint.is_checkpoint(folder):
            return load_model(folder, info.token_layout, info.objective)
        lm, tokenizer = load_base(str(folder))
    codebooks = None
    if codec is not None:
        quantizers = build_codec(codec).quantizer.quantizers
        codebooks = [part.codebook.weight.detach() for part in quantizers]
    model = extend(lm, tokenizer, info.layout.codebook_size, info.layout.strides, seed, codebooks)
    assert model.layout == info.token_layout, "driver and worker disagree about the first id"
    model.objective = info.objective
    return model, tokenizer
