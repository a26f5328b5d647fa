"""SNAC's encoder over clips of any lengths: alone in pieces of time, or together in one batch.

Owns how the published layers are applied. Alone, each block of the encoder runs over pieces of the
clip that stay in a core's cache, each with the context that its layers reach. Together, clips are
padded to the longest and what lies beyond a clip's own end is set to zero before any layer could
reach it, so that no clip sees padding that it would not have alone. Which of the two is the
caller's choice; it knows nothing of devices or codes.
"""

from collections.abc import Iterator, Sequence

import torch
from snac import SNAC
from snac.layers import EncoderBlock
from torch import Tensor, nn

PIECE_BYTES = 2 << 20
"""Of one activation in a piece, measured on 2 cores with 32 MB of cache in common: less costs more
calls, and from 8 MB on a clip waits for memory."""
UNITS_REACH = 39
"""Samples that three residual units of kernel 7 and dilations 1, 3 and 9 reach, on each side."""


class _Stage:
    """Layers that run as one: a block of the encoder, the first with the layer before it."""

    def __init__(self, layers: Sequence[nn.Module], channels: int, stride: int, reach: int) -> None:
        self.layers = layers
        self.stride = stride
        whole = stride * max(1, PIECE_BYTES // (4 * channels) // stride)
        self.piece = whole
        # Pieces begin where a strided layer takes a step.
        self.context = -(-reach // stride) * stride

    def run(self, x: Tensor, beyond: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = _clear(layer(x), beyond)
        return x

    def in_pieces(self, x: Tensor) -> Tensor:
        total = x.shape[-1]
        if total <= self.piece + self.context:
            return self.run(x, None)
        outs = []
        for first in range(0, total, self.piece):
            last = min(first + self.piece, total)
            start, stop = max(0, first - self.context), min(total, last + self.context)
            out = self.run(x[..., start:stop], None)
            low = (first - start) // self.stride
            outs.append(out[..., low : low + (last - first) // self.stride])
        return torch.cat(outs, dim=-1)


class ClipEncoder:
    """Waveforms to the latents that SNAC quantises."""

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
            x = stage.in_pieces(x)
        for layer in self._rest:
            x = layer(x)
        return x

    def together(self, waveforms: Tensor, lengths: Sequence[int]) -> Tensor:
        """Latents `[B, d, T / hop]` of clips `[B, T]` that are zero beyond their `lengths`, each a
        whole number of blocks. Latents beyond a clip's length mean nothing."""
        x = waveforms[:, None]
        ends = torch.tensor(list(lengths), device=x.device)
        at = torch.arange(x.shape[-1], device=x.device)
        beyond = (at >= ends[:, None])[:, None] if min(lengths) < x.shape[-1] else None
        for stage in self._stages:
            x = stage.run(x, beyond)
            if beyond is not None:
                beyond = beyond[..., :: stage.stride]
        for layer in self._rest:
            x = _clear(layer(x), beyond)
        return x


def _clear(x: Tensor, beyond: Tensor | None) -> Tensor:
    """Zero what lies beyond the clips' ends; `beyond` `[B, 1, T]` may be of a higher rate."""
    if beyond is not None:
        step = beyond.shape[-1] // x.shape[-1]
        x.masked_fill_(beyond[..., ::step], 0.0)
    return x


def cut_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indexes of clips of like lengths, the longest first, `budget` padded samples a batch.

    A clip that is longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
