"""The layers of a base laid out for decoding on a CPU: prepacked products, and few calls per token.

Owns two optimizations for inference in float32; where they do not apply, the base's own layers are
used, and nothing is refused. With AVX-512 weights are laid out beforehand for the library that is
fastest with few rows, which takes half the time of `torch.nn.functional.linear` or less: MKL on
Intel's processors, oneDNN on others. And a small voice spends most of a step on the price of some
hundred small operators, so that the layers of known families become a `PackedBody`: the same
arithmetic in a third of the calls, without their modules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from sheen.lm.attention.slots import Rows, attend

Product = Callable[[Tensor], Tensor]
"""`[B, d]` (or `[..., d]`) to `[B, rows]`."""

FAMILIES = ("llama", "qwen2", "qwen3")
"""Model families of transformers whose layers `PackedBody` computes."""
STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that depend on the position alone."""
REGISTERS = 32
"""Values that torch's operators compute at a time; a remainder goes through other functions, which
round differently."""
MIN_ROWS = 4
"""Rows of a float32 matrix product are padded to a multiple of this, or of a smaller number that
`fewest_rows` finds. Products of fewer rows take another path through the library, which adds in
another order; so do the last values of rows that do not fill its registers."""
MKL_ROWS = 128
"""Most rows of one call of MKL's product: with 192 and more, and weights of 1,024 x 1,024, it adds
in another order."""
MOST_ROWS = 16
"""The largest number of rows with which `fewest_rows` tests a smaller multiple."""


def applies(weight: Tensor) -> bool:
    """Whether a product's weights are laid out beforehand.

    With AVX2 alone a row would depend on how many there are, also in multiples of MIN_ROWS.
    """
    # The two operators are those that torch's own compiler puts in; torch has no public name for
    # them, so a torch without them is no error.
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(weight: Tensor, bias: Tensor | None = None) -> Product:
    """The product with `weight` `[rows, d]` as it is now."""
    if not applies(weight):
        return lambda x: F.linear(x, weight, bias)
    if _of_intel():
        return _mkl_product(weight.detach().t().contiguous(), bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def call(x: Tensor) -> Tensor:
        y: Tensor = multiply(x, packed, bias, "none", [], "")
        return y

    return call


@cache
def _of_intel() -> bool:
    """Whether MKL knows the processor. By its name and not by trying which library is faster, so
    that each start of a program computes the same bits."""
    name = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    return torch.backends.mkl.is_available() and name.startswith("Intel")


def _mkl_product(columns: Tensor, bias: Tensor | None) -> Product:
    """The product with `columns` `[d, rows]`: not transposed, MKL's product of few rows takes half
    of its time."""
    inputs, outputs = columns.shape

    def call(x: Tensor) -> Tensor:
        flat = x if x.ndim == 2 else x.reshape(-1, inputs)
        if len(flat) <= MKL_ROWS:
            y = torch.mm(flat, columns)
        else:
            y = torch.cat([torch.mm(part, columns) for part in flat.split(MKL_ROWS)])
        if bias is not None:
            y += bias
        return y if x.ndim == 2 else y.view(*x.shape[:-1], outputs)

    return call


class PackedLinear(nn.Module):
    """An `nn.Linear` for inference. It keeps no other copy of its weights."""

    def __init__(self, published: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = published.in_features, published.out_features
        bias = None if published.bias is None else published.bias.detach()
        self._product = product(published.weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x)


class Columns(nn.Module):
    """An `nn.Linear` that is some columns of a larger product: all of it is computed."""

    def __init__(self, whole: Product, first: int, published: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = published.in_features, published.out_features
        self._whole, self._first = whole, first

    def forward(self, x: Tensor) -> Tensor:
        return self._whole(x).narrow(-1, self._first, self.out_features)


def pack_linears(module: nn.Module) -> None:
    """Replace the linear layers below `module`, where that helps, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Linear and applies(child.weight):
                setattr(parent, name, PackedLinear(child))


def pack_together(parent: nn.Module, *names: str) -> Product:
    """One product for some linear layers of the same inputs, which become its `Columns`."""
    layers = [getattr(parent, name) for name in names]
    biases = [layer.bias for layer in layers]
    bias = None if biases[0] is None else torch.cat(biases)
    whole, first = product(torch.cat([layer.weight for layer in layers]), bias), 0
    for name, layer in zip(names, layers, strict=True):
        setattr(parent, name, Columns(whole, first, layer))
        first += layer.out_features
    return whole


def fewest_rows(products: Sequence[tuple[Product, int]]) -> int:
    """The smallest number of rows in whose multiples a product's rows do not depend on each other.

    `products` with their numbers of inputs are tried with up to MOST_ROWS. Which library call a
    product of few rows takes, and hence the order in which it adds, is the machine's own.
    """
    for fewest in (1, 2):
        if all(_rows_agree(multiply, inputs, fewest) for multiply, inputs in products):
            return fewest
    return MIN_ROWS


def _rows_agree(multiply: Product, inputs: int, fewest: int) -> bool:
    x = torch.randn(MOST_ROWS, inputs, generator=torch.Generator().manual_seed(0))
    whole = multiply(x)
    counts = range(fewest, MOST_ROWS, fewest)
    return all(torch.equal(multiply(x[-count:]), whole[-count:]) for count in counts)


@dataclass(frozen=True)
class _Layer:
    input_norm: Tensor
    qkv: Product
    head_norms: Tensor | None
    """`[heads + kv_heads, head_dim]`, for families that norm queries and keys."""
    output: Product
    inner_norm: Tensor
    gate_up: Product
    down: Product
    scaling: float
    window: int | None


class PackedBody:
    """The body of a base of a known family over slots. It shares the weights of the base's layers,
    which still work."""

    def __init__(self, base: Any) -> None:
        config = base.config
        self._base = base
        self._eps = torch.tensor(float(config.rms_norm_eps))
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        self._layers = [self._pack(layer) for layer in self._base.layers]
        self._norm = self._base.norm.weight
        self._cos = self._sin = torch.empty(0)

    @staticmethod
    def fits(base: Any) -> bool:
        """Whether all parts are transformers' own of one known family; adapters, for one, are not.

        A width that does not fill the registers rounds its last values otherwise.
        """
        config = base.config
        family = config.model_type
        homes = {f"transformers.models.{family}.modeling_{family}", "torch.nn.modules.container"}
        plain = (nn.Linear, nn.Embedding, SiLUActivation)
        return bool(
            family in FAMILIES
            and all(type(p) in plain or type(p).__module__ in homes for p in base.modules())
            and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in base.parameters())
            and config.intermediate_size % REGISTERS == 0
            and base.rotary_emb.rope_type in STATIC_ROPE
        )

    def _pack(self, layer: Any) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = None
        if hasattr(attention, "q_norm"):
            norms = torch.stack(
                [attention.q_norm.weight] * self._heads + [attention.k_norm.weight] * self._kv_heads
            )
        qkv = pack_together(attention, "q_proj", "k_proj", "v_proj")
        gate_up = pack_together(mlp, "gate_proj", "up_proj")
        return _Layer(
            layer.input_layernorm.weight,
            qkv,
            norms,
            pack_together(attention, "o_proj"),
            layer.post_attention_layernorm.weight,
            gate_up,
            pack_together(mlp, "down_proj"),
            attention.scaling,
            getattr(attention, "sliding_window", None),
        )

    def products(self) -> list[tuple[Product, int]]:
        """The products of one layer, for `fewest_rows`: the others have the same shapes."""
        layer, part = self._layers[0], self._base.layers[0]
        attention, mlp = part.self_attn, part.mlp
        return [
            (layer.qkv, attention.q_proj.in_features),
            (layer.output, attention.o_proj.in_features),
            (layer.gate_up, mlp.gate_proj.in_features),
            (layer.down, mlp.down_proj.in_features),
        ]

    def states(self, ids: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        """The states `[T, d]` of tokens `[T]` at `positions` `[T]`, as the base computes them."""
        count, width = len(ids), rows.cache.shape.head_dim
        rotated = self._heads + self._kv_heads
        if len(self._cos) < rows.cache.capacity:
            self._tabulate(rows.cache.capacity, width)
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        x: Tensor = self._base.embed_tokens(ids)
        for number, layer in enumerate(self._layers):
            y = self._normed(x).mul_(layer.input_norm)
            heads = layer.qkv(y).view(count, -1, width)
            turned = own = heads.narrow(1, 0, rotated)
            if layer.head_norms is not None:
                turned = self._normed(own).mul_(layer.head_norms)
            torch.add(turned * cos, turned.roll(width // 2, -1).mul_(sin), out=own)
            rows.cache.write(number, rows.index, heads.narrow(1, self._heads, 2 * self._kv_heads))
            query = heads.narrow(1, 0, self._heads)
            seen = attend(query, rows, number, layer.scaling, layer.window)
            x = layer.output(seen.reshape(count, -1)).add_(x)
            y = self._normed(x).mul_(layer.inner_norm)
            gate, up = layer.gate_up(y).chunk(2, -1)
            x = layer.down(F.silu(gate).mul_(up)).add_(x)
        return self._normed(x).mul_(self._norm)

    def _normed(self, x: Tensor) -> Tensor:
        """RMSNorm over the last dimension without its weights, in half the time of `F.rms_norm`,
        which on a CPU is seven operators."""
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        return x * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()

    def _tabulate(self, positions: int, width: int) -> None:
        """Cosines and sines `[positions, 1, width]`; the sines of `rotate_half`, which takes the
        other half and the first one negative: the sign is in the table."""
        cos, sin = self._base.rotary_emb(self._norm, torch.arange(positions)[None])
        sign = torch.ones(width)
        sign[: width // 2] = -1
        self._cos, self._sin = cos[0, :, None], (sin[0] * sign)[:, None]
