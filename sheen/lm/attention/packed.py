"""Attention over packed rows: every utterance sees itself alone.

Owns the attention function that transformers calls for a row of several utterances: FlashAttention
over variable lengths where the device and the precision have it, one causal call per utterance
elsewhere. No mask is ever built, so cost grows with the square of utterances and not of rows.
Refuses models whose layers carry state from one utterance to the next, see `check_isolation`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from sheen.lm.attention.guidance import Guide
from sheen.lm.batching import Segments

PACKED = "sheen_packed"
"""The name under which transformers knows `packed_attention`."""

SLOT_BACKENDS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
"""torch's backends for attention over slots on a GPU. Not cuDNN's, which torch may prefer on an
H100: it plans each new shape, for some 35 ms (a public report)."""

BEYOND = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""Arguments by which transformers' models change attention; each is refused here."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    guide: Guide | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature; `query` `[1, heads, T, d]`, the result `[1, T, heads, d]`.

    `key` and `value` may have fewer heads. Raises ValueError for what no path here computes.
    """
    if unknown := [name for name in BEYOND if others.get(name) is not None]:
        raise ValueError(f"the base's attention has {unknown[0]!r}; packed attention knows none")
    if segments is None:
        raise ValueError(
            f"{type(module).__name__} of the base does not pass on where utterances begin and end; "
            "such models are not supported"
        )
    if guide is not None and getattr(module, "layer_idx", None) == guide.layer:
        guide.observe(query, key, segments, scaling)
    if torch.is_autocast_enabled(query.device.type):
        # Norms and rotary embeddings leave queries and keys in float32, which no fast path takes.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if _is_flash(query, dropout):
        left = -1 if sliding_window is None else sliding_window - 1
        rows = [part[0].transpose(0, 1) for part in (query, key, value)]
        bounds, longest = segments.bounds, segments.longest
        out = varlen_attn(
            rows[0],
            rows[1],
            rows[2],
            bounds,
            bounds,
            longest,
            longest,
            scale=scaling,
            window_size=(left, 0),
        )
        assert isinstance(out, Tensor)
        return out[None], None
    # The object, not its lengths: compiled code would be made anew for each of them.
    out = _one_by_one(query, key, value, segments, scaling, dropout, sliding_window)
    return out, None


def _is_flash(query: Tensor, dropout: float) -> bool:
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
) -> Tensor:
    parts = (part.split(segments.lengths, dim=2) for part in (query, key, value))
    outs = []
    for q, k, v in zip(*parts, strict=True):
        mask, length = None, q.shape[2]
        if sliding_window is not None and length > sliding_window:
            mask = torch.ones(length, length, dtype=torch.bool, device=q.device)
            mask = mask.tril() & ~mask.tril(-sliding_window)
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, mask, dropout, mask is None, scale=scaling, enable_gqa=True
            )
        )
    return torch.cat(outs, dim=2).transpose(1, 2)


AttentionInterface.register(PACKED, packed_attention)


def use_attention(lm: PreTrainedModel, name: str) -> None:
    """Switch a model's attention, unless it is in use already."""
    if lm.config._attn_implementation != name:
        lm.set_attn_implementation(name)


@torch.no_grad()
def check_isolation(lm: PreTrainedModel) -> None:
    """Raise ValueError when an utterance's states depend on what shares its row, or are not those
    of the base's own attention.

    So it is where layers are recurrent or convolutional, or compute attention in their own way.
    """
    device = lm.device
    vocabulary = int(lm.config.get_text_config().vocab_size)
    rows = torch.arange(24, device=device).reshape(3, 8) * 7 % vocabulary
    positions = torch.arange(8, device=device)[None]

    def states(*which: int) -> Tensor:
        segments = Segments.of([8] * len(which)).to(device)
        hidden: Tensor = lm.base_model(
            input_ids=rows[list(which)].reshape(1, -1),
            position_ids=positions.repeat(1, len(which)),
            segments=segments,
            use_cache=False,
        ).last_hidden_state
        return hidden[0, -8:]

    own = None
    if lm.config._attn_implementation != PACKED:
        own = lm.base_model(input_ids=rows[1:2], use_cache=False).last_hidden_state[0]
    use_attention(lm, PACKED)
    alone, after_one, after_another = states(1), states(0, 1), states(2, 1)

    # The same arithmetic twice; and alone in other shapes, which bfloat16 rounds differently: of
    # 28 layers up to some percent as a whole, several times as much in a single value.
    def differs(states: Tensor) -> bool:
        return not float((states - alone).float().norm() / alone.float().norm()) < 0.1

    if not torch.allclose(after_one, after_another, atol=1e-5) or differs(after_one):
        raise ValueError(
            f"the base {lm.config.model_type!r} mixes utterances of one packed row (recurrent or "
            "convolutional layers, or attention of its own); such models are not supported"
        )
    if own is not None and differs(own):
        raise ValueError(
            f"the base {lm.config.model_type!r} computes attention in a way that packed rows do "
            "not; such models are not supported"
        )


@torch.no_grad()
def check_head(lm: PreTrainedModel) -> None:
    """Raise ValueError when logits are other than states times rows: some families scale, cap or
    bias them, and scoring rows alone would then be wrong."""
    ids = torch.arange(4, device=lm.device)[None]
    logits = lm(ids, use_cache=False).logits
    head = lm.get_output_embeddings().weight
    plain = lm.base_model(input_ids=ids, use_cache=False).last_hidden_state @ head.T
    if not torch.allclose(logits, plain, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"the base {lm.config.model_type!r} computes logits other than hidden @ rows "
            "(a bias, a scale or a soft cap); such heads are not supported"
        )
