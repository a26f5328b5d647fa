"""Initial weights: a checkpoint as it is, or a base extended by the codec's tokens.

Owns that choice, and passing the codec from the driver to the workers. New rows of a base are
initialized from the codec's codebooks.
"""

from typing import Any, TypeAlias

import ray
from snac import SNAC
from torch import Tensor

from sheen.lm import checkpoint
from sheen.lm.model import SpeechLM, extend, load_base, load_model
from sheen.storage import folders
from sheen.train.learning.learner import add_adapters

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
) -> tuple[SpeechLM, Any]:
    """The model and its tokenizer, with new adapters unless `lora_rank` is 0.

    source: folder or URI of a checkpoint or a base, or hub id of a base. codec: initializes the new
    rows of a base; without it they are independent.
    """
    model, tokenizer = _with_tokens(source, info, seed, codec)
    if lora_rank:
        # The Orpheus family needs no new rows, and its tables have 0.4 billion weights.
        add_adapters(model, lora_rank, tables=info.layout.family == "sheen")
    return model, tokenizer


def _with_tokens(
    source: str, info: checkpoint.CheckpointInfo, seed: int, codec: "CodecParts | None"
) -> tuple[SpeechLM, Any]:
    """A checkpoint as it is, or a base with the codec's tokens added."""
    with folders.local_folder(source) as folder:
        if checkpoint.is_checkpoint(folder) or info.layout.family == "orpheus":
            return load_model(folder, info.token_layout, info.softmax)
        lm, tokenizer = load_base(str(folder))
    codebooks = None
    if codec is not None:
        quantizers = build_codec(codec).quantizer.quantizers
        codebooks = [part.codebook.weight.detach() for part in quantizers]
    size, strides = info.codec.codebook_size, info.codec.strides
    model = extend(lm, tokenizer, size, strides, seed, codebooks, info.tags)
    assert model.layout == info.token_layout, "driver and worker disagree about the first id"
    model.softmax = info.softmax
    return model, tokenizer
