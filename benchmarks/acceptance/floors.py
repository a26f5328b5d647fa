"""What a device must read and write at least, whatever the kernels: bytes, for the floors."""

from collections.abc import Callable

from torch import Tensor, nn

from sheen.codec.inference import DilatedConv, TransposedConv
from sheen.codec.snac import Codec
from sheen.lm.cache.kv_cache import CacheShape
from sheen.lm.model import SpeechLM

CONVOLUTIONS = nn.Conv1d, nn.ConvTranspose1d, DilatedConv, TransposedConv


def body_weights(model: SpeechLM) -> int:
    """Weights of the layers: all but the tables."""
    tables = {id(table) for table in model.tables}
    return sum(weight.numel() for weight in model.lm.parameters() if id(weight) not in tables)


def pass_bytes(model: SpeechLM, running: int, positions: float) -> float:
    """Read in a decode pass: the body's weights, the head's rows of the levels at hand, and the
    keys and values of every request."""
    rows = model.layout.codebook_size * min(running, model.layout.levels)
    weights = body_weights(model) + rows * model.head.shape[1]
    shape = CacheShape.of(model.lm)
    position = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return (weights + running * positions * position) * shape.dtype.itemsize


def convolution_bytes(codec: Codec, run: Callable[[], object]) -> float:
    """Read and written while `run` uses a codec, in float32: every convolution its input and its
    output once."""
    counted = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal counted
        counted += inputs[0].numel() + output.numel()

    inside = {layer.published for layer in codec.model.modules() if isinstance(layer, DilatedConv)}
    hooks = [
        layer.register_forward_hook(count)
        for layer in codec.model.modules()
        if isinstance(layer, CONVOLUTIONS) and layer not in inside
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return 4.0 * counted
