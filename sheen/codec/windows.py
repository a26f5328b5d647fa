"""Windows of an utterance: a codec's geometry, and which frames a sample depends on.

Owns what the streaming decoder asks of a codec, wherever that computes. Decodes nothing itself.
"""

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """Frames to decode so that the samples of frames `first` to `last` (exclusive) come out exact.

    `start` to `stop` are the frames the decoder must see; `stop` may lie past the utterance's end
    by less than one block, where the codec pads.
    """

    first: int
    last: int
    start: int
    stop: int


class WindowCodec(abc.ABC):
    """The geometry of a SNAC model, and a decoder of windows of utterances."""

    device: torch.device

    def __init__(self, model: SNAC) -> None:
        self.sample_rate = int(model.sampling_rate)
        self.strides = tuple(int(stride) for stride in model.vq_strides)
        self.codebook_size = int(model.codebook_size)
        self.hop = math.prod(model.encoder_rates)
        """Samples per latent."""
        self.frame_samples = self.hop * self.strides[0]
        """Samples per coarse frame."""
        attention = int(model.attn_window_size or 1)
        self.block_frames = math.lcm(self.strides[0], attention) // self.strides[0]
        """Frames come in multiples of this: 1 at 24 kHz, 4 at 32 and 44 kHz (attention)."""
        self._attention = attention
        # Latents that move an output sample, on each side. Before the attention: the 7-wide first
        # convolution. After it, at each block's rate: one step of the transposed convolution and
        # three residual units of kernel 7 and dilations 1, 3, 9 (39 samples), then the last
        # 7-wide convolution.
        self._reach_before = 3
        reach, factor = 0.0, 1
        for rate in model.decoder_rates:
            reach += 1 / factor
            factor *= rate
            reach += 39 / factor
        self._reach_after = math.ceil(reach + 3 / factor)
        rates = [1, *model.decoder_rates]
        self.widest = max(
            math.ceil((model.decoder_dim >> layer) * math.prod(rates[: layer + 1]) / self.hop)
            for layer in range(len(rates))
        )
        """Values of the decoder's widest activation for each sample of audio."""

    def alive(self) -> bool:
        """Whether `decode` still works."""
        return True

    def window(self, first: int, last: int, total: int | None) -> Window:
        """The window that makes frames `first..last` exact; `total` frames end the utterance.

        With `total=None` (the end is not known yet) `stop` says how many frames must be there
        before these samples are final.
        """
        stride, attention = self.strides[0], self._attention
        low = first * stride - self._reach_after
        high = last * stride + self._reach_after
        low = low // attention * attention - self._reach_before
        high = -(-high // attention) * attention + self._reach_before
        block = stride * self.block_frames
        start = max(0, low // block) * self.block_frames
        stop = -(-high // block) * self.block_frames
        if total is not None:
            stop = min(stop, -(-total // self.block_frames) * self.block_frames)
        return Window(first, last, start, stop)

    @abc.abstractmethod
    def decode(
        self,
        codes: Sequence[NDArray[np.int16]],
        seeds: Sequence[int] | None = None,
        first_frames: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Samples `[B, frames * frame_samples]` (float32, on the CPU) of a batch of equal length.

        `codes` holds one array `[B, n]` per level. `seeds` `[B]` turns the codec's noise on (None:
        off); `first_frames` `[B]` says where in its utterance each row begins, so that its noise
        is the noise of those positions. Rows whose length is not a multiple of `block_frames` are
        padded with code 0 and the result trimmed. `lengths` `[B]`: frames of each row that count
        (None: all of them), with code 0 behind them; their samples are those of a row of these
        frames alone, others mean nothing.
        """
