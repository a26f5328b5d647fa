"""The speech LM: any causal LM that transformers loads, extended by the codec's tokens.

Owns adding the tokens, and the split of a forward pass into body (hidden states) and head (only the
rows that a caller needs). Refuses a base whose logits are not `hidden @ rows`. Knows nothing about
audio; its files are `sheen.lm.model_files`'s.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from sheen.codec.layout import Softmax, TokenLayout
from sheen.lm.attention.guidance import Guide
from sheen.lm.attention.packed import PACKED, SLOT_BACKENDS, check_head, use_attention
from sheen.lm.attention.slots import SLOTTED, Rows
from sheen.lm.base_model import (
    add_tags,
    draw_noise,
    first_new_id,
    initialize_rows,
)
from sheen.lm.batching import Batch
from sheen.lm.cpu_kernels import (
    MIN_ROWS,
    PackedBody,
    Product,
    fewest_rows,
    pack_linears,
    product,
)
from sheen.lm.loss import LossSums, TiedTable, speech_loss

logger = logging.getLogger(__name__)

PAD_TABLE_TO = 64
"""The embedding table is padded to a multiple of this: unaligned matrix sizes are slow on GPUs."""


class SpeechLM(nn.Module):
    """A causal LM and the layout of its audio rows; `forward` is the training loss."""

    def __init__(
        self, lm: PreTrainedModel, layout: TokenLayout, softmax: Softmax = "masked"
    ) -> None:
        super().__init__()
        assert lm.config._attn_implementation != PACKED, "another SpeechLM trains this base"
        self.lm = lm
        self.layout = layout
        self.softmax: Softmax = softmax
        self._attention: str = lm.config._attn_implementation
        self._one_gradient = False
        self._frozen = False
        self._body: PackedBody | None = None

    @torch.inference_mode()
    def freeze(self) -> None:
        """Convert the weights for inference, in place: they can no longer be trained or saved."""
        self.lm.eval().requires_grad_(False)
        if PackedBody.fits(self.lm.base_model):
            self._body = PackedBody(self.lm.base_model)
        else:
            pack_linears(self.lm.base_model)
        self._frozen = True

    def fewest_rows(self, head: Product) -> int:
        """See `cpu_kernels.fewest_rows`; `head` is a product with some of the head's rows."""
        if self.lm.device.type != "cpu" or self.lm.dtype != torch.float32:
            return 1
        if self._body is None:
            return MIN_ROWS
        return fewest_rows([*self._body.products(), (head, self.head.shape[1])])

    def head_product(self, ids: Sequence[int]) -> Product:
        """A function from states `[B, d]` to float32 logits `[B, len(ids)]` of the head's rows.

        Consecutive ids, given as a range, are used in place; otherwise the rows are copied.
        """
        if isinstance(ids, range):
            rows = self.head.detach()[ids.start : ids.stop]
        else:
            rows = self.head.detach()[torch.tensor(ids, device=self.head.device)]
        if self._frozen and self.head.dtype == torch.float32:
            return product(rows)
        return lambda states: float32_logits(states, rows)

    @property
    def head(self) -> Tensor:
        """`[V, d]`: the output embedding (the input one too where the base ties them)."""
        return _table(self.lm.get_output_embeddings())

    @property
    def tables(self) -> list[Tensor]:
        """The embedding tables: input, and output if the base does not tie them."""
        first, second = _table(self.lm.get_input_embeddings()), self.head
        return [first] if first is second else [first, second]

    @property
    def max_positions(self) -> int:
        return int(self.lm.config.max_position_embeddings)

    def hidden(self, input_ids: Tensor | None, **arguments: Any) -> Any:
        """The body's output, `.last_hidden_state` `[B, T, d]`; arguments as for the base."""
        use_attention(self.lm, self._attention)
        return self.lm.base_model(input_ids=input_ids, **arguments)

    @torch.no_grad()
    def prepare_training(self) -> None:
        """Use `TiedTable` if the base computes the same from embeddings as from ids."""
        embedding = self.lm.get_input_embeddings()
        self._one_gradient = False
        if TiedTable.fits(embedding, self.head):
            ids = torch.arange(min(8, self.layout.first_id))[None]
            states = self.hidden(ids, use_cache=False).last_hidden_state
            looked_up = self.hidden(None, inputs_embeds=self.head[ids], use_cache=False)
            self._one_gradient = torch.equal(states, looked_up.last_hidden_state)

    def inputs_and_head(self, ids: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The base's input arguments for ids in a training step, and the head."""
        embedding = self.lm.get_input_embeddings()
        # Checked here too: a sharded table moves to its device after `prepare_training`.
        fits = self._one_gradient and TiedTable.fits(embedding, self.head)
        if not fits or not torch.is_grad_enabled():
            return {"input_ids": ids}, self.head
        assert isinstance(embedding, nn.Embedding)
        table = TiedTable(embedding)
        rows = table.look_up(ids)
        return {"inputs_embeds": rows}, table.head()

    def packed_states(
        self, batch: Batch, inputs: dict[str, Tensor] | None = None, guide: Guide | None = None
    ) -> Tensor:
        """The states `[T, d]` of a packed row; `inputs` replace its ids."""
        use_attention(self.lm, PACKED)
        watched: dict[str, Any] = {} if guide is None else {"guide": guide}
        output = self.lm.base_model(
            **(inputs or {"input_ids": batch.input_ids}),
            position_ids=batch.position_ids,
            segments=batch.segments,
            use_cache=False,
            **watched,
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    def slot_states(self, ids: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        """The states `[T, d]` of a step over slots: tokens `[T]` at `positions` `[T]`."""
        if self._body is not None:
            return self._body.states(ids, positions, rows)
        use_attention(self.lm, SLOTTED)
        with sdpa_kernel(SLOT_BACKENDS):
            output = self.lm.base_model(
                input_ids=ids[None], position_ids=positions[None], rows=rows, use_cache=False
            )
        states: Tensor = output.last_hidden_state[0]
        return states

    def forward(self, batch: Batch, guided: bool = False) -> LossSums:
        """The summed losses of a packed row, optionally with guided attention's."""
        inputs, head = self.inputs_and_head(batch.input_ids)
        guide = Guide(self.lm, batch.prompts) if guided else None
        states = self.packed_states(batch, inputs, guide)
        sums = speech_loss(states, batch.targets, head, self.layout, self.softmax)
        return sums if guide is None else replace(sums, guide=guide.loss)


def float32_logits(states: Tensor, rows: Tensor) -> Tensor:
    """`states` `[B, d]` times `rows` `[R, d]`: `[B, R]` in float32, whatever their format.

    Rounded to bfloat16, logits near 20 would be multiples of 0.125: 0.4 nats at temperature 0.3.
    """
    if states.dtype == torch.float32:
        return nn.functional.linear(states, rows)
    if states.is_cuda:
        return torch.mm(states, rows.T, out_dtype=torch.float32)
    return nn.functional.linear(states.float(), rows.float())


def extend(
    lm: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    codebook_size: int,
    strides: tuple[int, ...],
    seed: int,
    codebooks: Sequence[Tensor] | None = None,
    tags: Sequence[str] = (),
) -> SpeechLM:
    """Add the tokens of tags and codec to a base, in place: new ids follow `len(tokenizer)`.

    An embedding table is often larger than its tokenizer; these untrained rows become audio rows
    too. `codebooks`: see `draw_noise`. Raises ValueError for a base that already has such tokens,
    or whose head is not a plain matrix.
    """
    known = first_new_id(tokenizer)
    add_tags(tokenizer, tags)
    layout = TokenLayout(first_new_id(tokenizer), codebook_size, strides)
    names = layout.token_names()
    vocabulary = tokenizer.get_vocab()
    if taken := [name for name in names if name in vocabulary]:
        raise ValueError(f"the tokenizer already has {taken[0]!r}: fine-tune its checkpoint")
    # Special, so that `split_special_tokens` encodes the same letters in a text as text.
    tokenizer.add_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True
    )
    ids = tokenizer.convert_tokens_to_ids(names)
    if ids != list(range(layout.start_id, layout.start_id + layout.size)):
        raise ValueError(
            f"the tokenizer ({type(tokenizer).__name__}) does not number the {len(names)} added "
            f"tokens from {layout.first_id} on"
        )
    rows = max(layout.first_id + layout.size, len(_table(lm.get_input_embeddings())))
    lm.resize_token_embeddings(rows, pad_to_multiple_of=PAD_TABLE_TO, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    tables = {"input": _table(lm.get_input_embeddings())}
    if (output := _table(lm.get_output_embeddings())) is not tables["input"]:
        tables["output"] = output
    for name, table in tables.items():
        width, first = table.shape[1], layout.first_id
        noise = draw_noise(len(table) - first, width, generator, layout, codebooks)
        of_tags = torch.randn(first - known, width, generator=generator, dtype=torch.float64)
        initialize_rows(table, known, torch.cat([of_tags, noise]))
        logger.info(
            "initialized %d new rows of the %s embedding: std %.4f, existing %.4f",
            len(table) - known,
            name,
            table[known:].std().item(),
            table[:known].std().item(),
        )
    model = SpeechLM(lm, layout)
    check_head(lm)
    return model


def _table(embedding: nn.Module) -> Tensor:
    weight = embedding.weight
    assert isinstance(weight, Tensor)
    return weight
