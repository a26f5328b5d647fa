"""The speech model: any causal LM that transformers loads, extended by the codec's tokens.

Owns adding the tokens, initialising their rows, and the split of a forward pass into body (hidden
states) and head (only the audio rows that a caller asks for). Refuses a base whose logits are more
than `hidden @ rows`. Knows nothing about audio.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sheen.core.loss import LossSums, audio_targets, speech_loss
from sheen.core.tokens import TokenLayout

logger = logging.getLogger(__name__)

PAD_TABLE_TO = 64
"""The embedding table is padded to a multiple of this: unaligned matrix sizes are slow on GPUs."""


class SpeechLM(nn.Module):
    """A causal LM and the layout of its audio rows; `forward` is the training loss."""

    def __init__(self, lm: PreTrainedModel, layout: TokenLayout) -> None:
        super().__init__()
        self.lm = lm
        self.layout = layout

    @property
    def head(self) -> Tensor:
        """`[V, d]`: the output embedding (the input one too where the base ties them)."""
        return _table(self.lm.get_output_embeddings())

    @property
    def max_positions(self) -> int:
        return int(self.lm.config.max_position_embeddings)

    def hidden(self, input_ids: Tensor, **arguments: Any) -> Any:
        """The body's output; `.last_hidden_state` is `[B, T, d]`. Takes what the base takes."""
        return self.lm.base_model(input_ids=input_ids, **arguments)

    def forward(self, input_ids: Tensor, labels: Tensor) -> LossSums:
        """Summed loss of a right-padded batch, see `sheen.core.batches.Batch`."""
        states = self.hidden(input_ids, use_cache=False).last_hidden_state
        mask, targets = audio_targets(labels)
        return speech_loss(states[:, :-1][mask], targets, self.head, self.layout)


def load_base(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM (float32) and its tokenizer, from a folder or a hub id."""
    if source.startswith(("/", ".", "~")) and not Path(source).expanduser().is_dir():
        raise ValueError(f"model {source!r}: no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"model {source!r}: neither a transformers folder nor a model the hub gave ({error})"
        ) from error
    return lm, tokenizer


def extend(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    codebook_size: int,
    strides: tuple[int, ...],
    seed: int,
) -> SpeechLM:
    """Add the codec's tokens to a base, in place: new ids follow `len(tokenizer)`.

    A published embedding table is often larger than its tokenizer; the rows in between were never
    trained and become audio rows like any other. Raises ValueError for a base that already holds
    such tokens or whose head is not a plain matrix.
    """
    known = len(tokenizer)
    layout = TokenLayout(known, codebook_size, strides)
    names = layout.token_names()
    vocabulary = tokenizer.get_vocab()
    if taken := [name for name in names if name in vocabulary]:
        raise ValueError(f"the tokenizer already holds {taken[0]!r}: fine-tune its checkpoint")
    # Special, so that `split_special_tokens` keeps them apart from the same letters in a text.
    tokenizer.add_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True
    )
    ids = tokenizer.convert_tokens_to_ids([names[0], names[-1]])
    assert ids == [layout.start_id, layout.start_id + layout.size - 1], ids
    rows = max(known + layout.size, len(_table(lm.get_input_embeddings())))
    lm.resize_token_embeddings(rows, pad_to_multiple_of=PAD_TABLE_TO, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {"input": _table(lm.get_input_embeddings())}
    if (output := _table(lm.get_output_embeddings())) is not tables["input"]:
        tables["output"] = output
    for name, table in tables.items():
        _initialise_rows(name, table, known, generator)
    model = SpeechLM(lm, layout)
    _check_head(model)
    return model


def _table(embedding: nn.Module) -> Tensor:
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def _initialise_rows(name: str, table: Tensor, known: int, generator: torch.Generator) -> None:
    """Draw every row from `known` on from N(mean, covariance) of the rows before it.

    transformers' own mean_resizing scales that covariance by 1e-9: all rows start equal, and
    12,290 equal rows stay hard to tell apart (arXiv 2604.02324).
    """
    existing = table[:known].double()
    mean = existing.mean(0)
    centred = existing - mean
    covariance = centred.T @ centred / max(1, known - 1)
    values, vectors = torch.linalg.eigh(covariance)
    factor = vectors * values.clamp(min=0).sqrt()
    noise = torch.randn(len(table) - known, len(mean), generator=generator, dtype=torch.float64)
    table[known:] = (mean + noise.to(table.device) @ factor.T).to(table.dtype)
    logger.info(
        "initialised %d new rows of the %s embedding from N(mean, covariance) of %d rows: "
        "std %.4f, existing %.4f",
        len(table) - known,
        name,
        known,
        table[known:].std().item(),
        table[:known].std().item(),
    )


@torch.no_grad()
def _check_head(model: SpeechLM) -> None:
    """Some families scale, cap or bias their logits; scoring rows alone would then be wrong."""
    ids = torch.arange(min(4, model.layout.first_id), device=model.lm.device)[None]
    logits = model.lm(ids).logits
    plain = model.hidden(ids).last_hidden_state @ model.head.T
    if not torch.allclose(logits, plain, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the base {model.lm.config.model_type!r} computes logits other than hidden @ rows "
            "(a bias, a scale or a soft cap); such heads are not supported"
        )


def load_model(folder: Path, layout: TokenLayout) -> tuple[SpeechLM, PreTrainedTokenizerBase]:
    """The model and tokenizer of a checkpoint folder; `layout` is the one its JSON records."""
    lm, tokenizer = load_base(str(folder))
    found = tokenizer.convert_tokens_to_ids(layout.token_names()[0])
    if found != layout.start_id:
        raise ValueError(
            f"{folder}: the tokenizer gives <audio_start> id {found}, the recorded layout "
            f"{layout.start_id}: these files are not of one checkpoint"
        )
    return SpeechLM(lm, layout), tokenizer


def save_model(model: SpeechLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what bare transformers needs: config, safetensors, tokenizer."""
    model.lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
