"""Base models: which causal LMs can be trained, and the first values of their new embedding rows.

Owns Sheen's assumptions about a base, which are checked before its weights are loaded, with an
error for each: its family (on a small random model of that family), its files and its tokenizer's
ids. Assumptions about the weights are checked when they are loaded. New rows get the mean and the
covariance of the base's rows; their noise is similar for codes with similar codebook vectors, or
independent without codebooks. transformers' own mean_resizing scales the covariance by 1e-9, so
that all rows start nearly equal (arXiv 2604.02324): docs/decisions/0013 compares the three.
"""

import copy
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import AddedToken
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sheen.codec.layout import TokenLayout
from sheen.lm.attention.packed import check_head, check_isolation

LEVEL_SHARE = 0.5
"""Share of the noise's variance that all codes of a level have in common."""
LAYERS, VOCABULARY = 2, 64
INNER = {"intermediate_size": 64, "moe_intermediate_size": 64, "num_local_experts": 4}
HEADS = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16}
"""Sizes of the small model, for config fields that the family has."""
MOST_WEIGHTS = 100_000_000
"""If the small model has more weights, the check is left to the base's own weights."""


def check_config(config: PreTrainedConfig) -> int:
    """The longest sequence of a base, in tokens. Raises ValueError for an unsupported base.

    Takes a few seconds: it runs a small random model of the family.
    """
    kind = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"the base's weights are quantized ({_method(config)}); give the original weights, "
            "which training needs"
        )
    if config.get_text_config() is not config:
        raise ValueError(f"the base {kind!r} is multimodal; give a text-only model")
    if config.is_encoder_decoder or type(config) not in AutoModelForCausalLM._model_mapping:
        raise ValueError(f"the base {kind!r} is not a decoder-only language model")
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise ValueError(
            f"the base {kind!r} states no longest sequence (max_position_embeddings): recurrent "
            "models and such with ALiBi are not supported"
        )
    _try_family(config)
    return positions


def _method(config: PreTrainedConfig) -> str:
    found = config.quantization_config
    return str(found.get("quant_method") if isinstance(found, dict) else found.quant_method)


def _try_family(config: PreTrainedConfig) -> None:
    """Check small random models of the family: a narrow one, else one of the base's width."""
    for narrow in (True, False):
        try:
            lm = _small(config, narrow)
            if lm is not None:
                check_head(lm)
                check_isolation(lm)
                return
        except ValueError:
            raise
        except Exception:  # noqa: BLE001 - no model of this family can be that small
            continue


def _small(config: PreTrainedConfig, narrow: bool) -> PreTrainedModel | None:
    """A small random model; None if it would be too large. Raises whatever the family raises."""
    small = copy.deepcopy(config)
    with suppress(AttributeError):  # some families compute it
        if layers := getattr(small, "layer_types", None):
            small.layer_types = (layers * LAYERS)[:LAYERS]
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    sizes = {"num_hidden_layers": LAYERS, "vocab_size": VOCABULARY} | INNER
    if narrow:
        heads = HEADS["num_attention_heads"]
        before = getattr(small, "num_key_value_heads", 1), getattr(small, "num_attention_heads", 2)
        sizes |= HEADS | {"num_key_value_heads": heads if before[0] == before[1] else heads // 2}
    for name, size in sizes.items():
        if isinstance(getattr(small, name, None), int):
            with suppress(AttributeError):
                setattr(small, name, size)
    with torch.device("meta"):
        if AutoModelForCausalLM.from_config(small).num_parameters() > MOST_WEIGHTS:
            return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm: PreTrainedModel = AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(5)  # otherwise attention is nearly uniform and hides mixing
    return lm


def check_files(folder: Path) -> None:
    """Raise ValueError naming a file of a model's folder that cannot be loaded.

    Reads only the headers of weight files.
    """
    # Imported here: a model that is already in memory does not need pyarrow.
    from sheen.storage import files

    for path in sorted(folder.iterdir()):
        if path.is_file():
            files.refuse_pointer(path)
    names = {path.name for path in folder.iterdir()}
    kinds = (".safetensors", ".bin")  # transformers takes the first that is there
    kind = next((kind for kind in kinds if any(kind in name for name in names)), kinds[0])
    wanted = {name for name in names if name.endswith(kind)}
    for index in folder.glob(f"*{kind}.index.json"):
        wanted |= set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    if not wanted:
        raise ValueError(f"{folder}: it has no weights (*.safetensors)")
    for name in sorted(wanted):
        if name not in names:
            raise ValueError(f"{folder / name} is missing: it is a part of the weights")
        if name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{folder / name}: not a complete file of weights ({error})"
                ) from error


def first_new_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the next token added to a tokenizer. ValueError if it is already in use.

    Tokenizers number added tokens from their size on; with gaps, existing ids are larger.
    """
    size, largest = len(tokenizer), max(tokenizer.get_vocab().values(), default=-1)
    if largest >= size:
        raise ValueError(
            f"the tokenizer's ids have gaps: it has {size} tokens and ids up to {largest}, so that "
            "new tokens would get ids that are in use; renumber its vocabulary and the embedding "
            "rows"
        )
    return size


def add_tags(tokenizer: PreTrainedTokenizerBase, tags: Sequence[str]) -> None:
    """Add each tag, such as `<laugh>`, as an ordinary token, which texts may contain."""
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])


def draw_noise(
    rows: int,
    width: int,
    generator: torch.Generator,
    layout: TokenLayout,
    codebooks: Sequence[Tensor] | None,
) -> Tensor:
    """Noise `[rows, width]` float64 of unit variance for the rows from `<audio_start>` on.

    Without `codebooks`, rows are independent. With them, one `[codebook_size, d]` per level, a
    code's row is a random linear map of its whitened vector plus a vector common to its level.
    """
    noise = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    for level, vectors in enumerate(codebooks or []):
        white = _whiten(vectors.double().cpu())
        mapping = torch.randn(white.shape[1], width, generator=generator, dtype=torch.float64)
        common = torch.randn(width, generator=generator, dtype=torch.float64)
        own = white @ mapping / white.shape[1] ** 0.5
        first = layout.blocks[level].base - layout.first_id
        noise[first : first + layout.codebook_size] = (
            LEVEL_SHARE**0.5 * common + (1 - LEVEL_SHARE) ** 0.5 * own
        )
    return noise


def _whiten(vectors: Tensor) -> Tensor:
    """`[n, d]` with zero mean, unit variances and no correlation."""
    centered = vectors - vectors.mean(0)
    left, _, right = torch.linalg.svd(centered, full_matrices=False)
    whitened: Tensor = len(vectors) ** 0.5 * left @ right
    return whitened


@torch.no_grad()
def initialize_rows(table: Tensor, known: int, noise: Tensor) -> None:
    """Set the rows from `known` on to the mean of the rows before plus noise with their
    covariance."""
    existing = table[:known].double()
    mean = existing.mean(0)
    centered = existing - mean
    values, vectors = torch.linalg.eigh(centered.T @ centered / max(1, known - 1))
    factor = vectors * values.clamp(min=0).sqrt()
    table[known:] = (mean + noise.to(table.device) @ factor.T).to(table.dtype)
