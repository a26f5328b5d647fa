"""SNAC's layers and encoder, computed faster on a CPU, with the published weights.

Owns arithmetic alone. A sample's value does not depend, to the bit, on its place in a batch, its
distance from an edge or the batch's length: the same frames give the same audio in whatever windows
they are decoded. The encoder takes a clip alone, block by block over chunks of it that stay in a
core's cache, each with its receptive field; or several clips in one batch, padded, with zeros
beyond each clip's end before any layer can reach them. Which of the two is the caller's choice.
Knows nothing about devices or codes.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from snac import SNAC
from snac.layers import EncoderBlock, Snake1d
from torch import Tensor, nn

from sheen.codec.transfer import to_device


class InPlaceSnake(nn.Module):
    """SNAC's activation, x + sin(alpha x)^2 / alpha, in one buffer instead of five.

    The same operations in the same order, so the same bits. Activations are half of a codec's time
    on a CPU and wait for memory: a clip encodes in about three quarters of the time.
    """

    alpha: Tensor
    inverse: Tensor

    def __init__(self, published: Snake1d) -> None:
        super().__init__()
        alpha = published.alpha.detach()
        self.register_buffer("alpha", alpha)
        self.register_buffer("inverse", (alpha + 1e-9).reciprocal())  # 1e-9 is SNAC's

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.alpha
        return y.sin_().square_().mul_(self.inverse).add_(x)


class DilatedConv(nn.Module):
    """A depthwise convolution of dilation d, `[B, C, T]` to the same shape.

    Seen as rows of d samples, it is a convolution down the columns that skips nothing. oneDNN has a
    fast depthwise kernel for that and none for a dilated one, which took a third of a codec's time.
    The sums are taken tap by tap, so they round elsewhere (1e-6 of full scale after a whole codec).
    """

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        return (
            isinstance(conv, nn.Conv1d)
            and conv.groups == conv.in_channels == conv.out_channels
            and conv.dilation[0] > 1
            and conv.stride[0] == 1
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and 2 * conv.padding[0] == (conv.kernel_size[0] - 1) * conv.dilation[0]
            and conv.padding[0] % conv.dilation[0] == 0
        )

    def __init__(self, published: nn.Conv1d) -> None:
        super().__init__()
        self.published = published
        self._dilation = published.dilation[0]
        self._rows_around = int(published.padding[0]) // self._dilation

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            y: Tensor = self.published(x)
            return y
        samples, width = x.shape[-1], self._dilation
        rows = F.pad(x, (0, -samples % width)).unflatten(-1, (-1, width))
        weight, bias = self.published.weight[..., None], self.published.bias
        y = F.conv2d(rows, weight, bias, padding=(self._rows_around, 0), groups=x.shape[1])
        return y.flatten(2)[..., :samples]


class TransposedConv(nn.Module):
    """SNAC's upsampling by s, `[B, C, T]` to `[B, D, T * s]`: a transposed convolution of kernel
    2 s, so that each output is the sum of two taps, of one input sample and the one before it.

    oneDNN chooses its kernel by T, and the kernels round otherwise from one another. All taps as
    one product of the channels round the same for 3 frames and for 40 (decision 0024), and take no
    longer.
    """

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        return (
            isinstance(conv, nn.ConvTranspose1d)
            and conv.kernel_size[0] == 2 * conv.stride[0]
            and conv.padding[0] == -(-conv.stride[0] // 2)
            and conv.output_padding[0] == conv.stride[0] % 2
            and conv.dilation[0] == conv.groups == 1
            and conv.bias is not None
        )

    weight: Tensor
    bias: Tensor

    def __init__(self, published: nn.ConvTranspose1d) -> None:
        super().__init__()
        assert published.bias is not None
        self._rate, self._outputs = int(published.stride[0]), published.out_channels
        self._cropped = int(published.padding[0])
        weight = published.weight.detach().unflatten(-1, (2, self._rate))  # [C, D, tap, s]
        self.register_buffer("weight", weight.permute(2, 1, 3, 0).flatten(0, 2)[..., None].clone())
        bias = published.bias.detach().repeat_interleave(self._rate)
        self.register_buffer("bias", torch.cat([bias, torch.zeros_like(bias)]))

    def forward(self, x: Tensor) -> Tensor:
        samples = x.shape[-1] * self._rate
        taps = F.conv1d(F.pad(x, (0, 1)), self.weight, self.bias)
        y, before = taps.chunk(2, dim=1)
        y[..., 1:] += before[..., :-1]
        y = y.unflatten(1, (self._outputs, self._rate)).transpose(2, 3).flatten(2)
        cropped: Tensor = y[..., self._cropped : self._cropped + samples]
        return cropped


CHUNK_BYTES = 2 << 20
"""Size of an activation in a chunk, measured on 2 cores with 32 MB of shared cache: less costs more
calls, and from 8 MB on a clip waits for memory."""
UNITS_REACH = 39
"""Samples that three residual units of kernel 7 and dilations 1, 3 and 9 reach, on each side."""


class _Stage:
    """Layers that run as one: a block of the encoder, the first with the layer before it."""

    def __init__(self, layers: Sequence[nn.Module], channels: int, stride: int, reach: int) -> None:
        self.layers = layers
        self.stride = stride
        whole = stride * max(1, CHUNK_BYTES // (4 * channels) // stride)
        self.chunk = whole
        # Chunks begin where a strided layer takes a step.
        self.context = -(-reach // stride) * stride

    def run(self, x: Tensor, beyond: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = clear(layer(x), beyond)
        return x

    def in_chunks(self, x: Tensor) -> Tensor:
        total = x.shape[-1]
        if total <= self.chunk + self.context:
            return self.run(x, None)
        outs = []
        for first in range(0, total, self.chunk):
            last = min(first + self.chunk, total)
            start, stop = max(0, first - self.context), min(total, last + self.context)
            out = self.run(x[..., start:stop], None)
            low = (first - start) // self.stride
            outs.append(out[..., low : low + (last - first) // self.stride])
        return torch.cat(outs, dim=-1)


class ClipEncoder:
    """Waveforms to the latents that SNAC quantizes."""

    def __init__(self, model: SNAC) -> None:
        self._stages: list[_Stage] = []
        self._rest: list[nn.Module] = []
        before: list[nn.Module] = []
        channels = 0
        for layer in model.encoder.block:
            if isinstance(layer, EncoderBlock):
                strided = layer.block[-1]
                stride, reach = int(strided.stride[0]), int(strided.kernel_size[0])
                reach += UNITS_REACH + 3 * len(before)
                channels = int(strided.in_channels)
                layers = [*before, *layer.block[:-2], nn.Sequential(*layer.block[-2:])]
                self._stages.append(_Stage(layers, channels, stride, reach))
                before = []
            elif self._stages:
                self._rest.append(layer)
            else:
                before.append(layer)

    def alone(self, waveform: Tensor) -> Tensor:
        """Latents `[1, d, T / hop]` of one clip `[T]`, a whole number of blocks."""
        x = waveform[None, None]
        for stage in self._stages:
            x = stage.in_chunks(x)
        for layer in self._rest:
            x = layer(x)
        return x

    def together(self, waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
        """Latents `[B, d, T / hop]` of clips `[B, T]` that are zero beyond their `lengths`, each a
        whole number of blocks; there may be rows of no clip behind them. Latents beyond a clip's
        length mean nothing."""
        x = waveforms[:, None]
        lengths = [*lengths, *[0] * (len(x) - len(lengths))]
        ends = to_device(torch.tensor(lengths), x.device)
        at = torch.arange(x.shape[-1], device=x.device)
        beyond = (at >= ends[:, None])[:, None] if min(lengths) < x.shape[-1] else None
        for stage in self._stages:
            x = stage.run(x, beyond)
            if beyond is not None:
                beyond = beyond[..., :: stage.stride]
        for layer in self._rest:
            x = clear(layer(x), beyond)
        return x


def clear(x: Tensor, beyond: Tensor | None) -> Tensor:
    """Zero the samples beyond the clips' ends, in place; `beyond` `[B, 1, T]` may be of a higher
    rate."""
    if beyond is not None:
        step = beyond.shape[-1] // x.shape[-1]
        x.masked_fill_(beyond[..., ::step], 0.0)
    return x


STEPS = 8
"""Padded lengths from one power of two to the next: a clip is padded by up to an eighth."""


def padded_length(samples: int, block: int) -> int:
    """The length that a clip is padded to, a whole number of blocks: one of 33 between 1
    and 16 s. For each new shape a GPU's library makes some twenty plans, of milliseconds each."""
    blocks = -(-samples // block)
    step = max(1, (1 << (blocks.bit_length() - 1)) // STEPS)
    return -(-blocks // step) * step * block


def padded_count(clips: int, most: int) -> int:
    """The number of clips that a batch is padded to: as many as fit, or a power of two."""
    return min(most, 1 << (clips - 1).bit_length())


def cut_batches(
    lengths: Sequence[int], budget: int, block: int = 1
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Indexes of clips of like lengths, the longest first, and the shape `[B, T]` of their batch,
    one of few, of at most `budget` samples.

    A clip that is longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    padded, most = 0, 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if len(batch) == most:
            if batch:
                yield batch, (most, padded)
            batch = []
            padded = padded_length(lengths[index], block)
            most = max(1, budget // padded)
        batch.append(index)
    if batch:
        yield batch, (padded_count(len(batch), most), padded)
