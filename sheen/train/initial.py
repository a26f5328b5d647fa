"""Initial weights: a checkpoint as it is, or a base extended by the codec's tokens.

Owns that choice, and passing the codec from the driver to the workers. New rows of a base are
initialized from the codec's codebooks.
"""

from itertools import combinations
from typing import Any, TypeAlias

import ray
import torch
from snac import SNAC
from torch import Tensor

from sheen.lm import checkpoint
from sheen.lm.model import SpeechLM, extend
from sheen.lm.model_files import load_base, load_model
from sheen.storage import folders, hub
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

    source: folder, URI or hub id of a checkpoint or a base. codec: initializes the new
    rows of a base; without it they are independent.
    """
    model, tokenizer, extended = _with_tokens(source, info, seed, codec)
    if lora_rank:
        # The tables of Orpheus have 0.4 billion weights.
        add_adapters(model, lora_rank, tables=extended or _slots_share_rows(model))
    return model, tokenizer


def _slots_share_rows(model: SpeechLM) -> bool:
    """Whether different ids have equal rows of the head, as in an export of `sheen.export`: as long
    as they do, no state of the body can choose between them."""
    head, size = model.head.detach(), model.layout.codebook_size
    return any(
        one.level == other.level
        and torch.equal(head[one.base : one.base + size], head[other.base : other.base + size])
        for one, other in combinations(model.layout.blocks, 2)
    )


def _with_tokens(
    source: str, info: checkpoint.CheckpointInfo, seed: int, codec: "CodecParts | None"
) -> tuple[SpeechLM, Any, bool]:
    """A checkpoint as it is, or a base with the codec's tokens added, and which."""
    with folders.local_folder(hub.located_with(source, checkpoint.INFO_FILE)) as folder:
        if checkpoint.is_checkpoint(folder) or info.layout.family == "orpheus":
            return *load_model(folder, info.token_layout, info.softmax), False
        lm, tokenizer = load_base(str(folder))
    codebooks = None
    if codec is not None:
        quantizers = build_codec(codec).quantizer.quantizers
        codebooks = [part.codebook.weight.detach() for part in quantizers]
    size, strides = info.codec.codebook_size, info.codec.strides
    model = extend(lm, tokenizer, size, strides, seed, codebooks, info.tags)
    assert model.layout == info.token_layout, "driver and worker disagree about the first id"
    model.softmax = info.softmax
    return model, tokenizer, True
