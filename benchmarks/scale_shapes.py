"""What a second of speech costs by the shapes of codec, base and ASR: FLOPs, bytes, weights.

Counted layer by layer from the config, without torch. Owns no speed: what a device makes of the
counts is `scale_jobs.py`'s. A multiplication and an addition are two FLOPs. Bytes are those of the
operators as they are called, each reading its inputs and writing its output once; what a cache or a
fused kernel saves is not counted.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KERNEL = 7
UNITS = 3
"""SNAC's residual units per block; each is Snake, depthwise 7, Snake, 1x1, sum."""
SNAKE_VALUES = 11
"""Values that `sheen.codec.inference.InPlaceSnake` reads and writes for one of its input: five
operators in one buffer, the last with two inputs."""
ADD_VALUES = 3
CLEAR_VALUES = 2
"""Of zeroing what lies beyond the clips' ends after each layer of a batch."""
KERNEL_OF_MELS = 3
FLOAT32, BFLOAT16, INT8 = 4, 2, 1
"""Bytes of a value; float16 counts as BFLOAT16."""


@dataclass(frozen=True)
class Work:
    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)


def _conv(inputs: int, outputs: int, taps: float, per_second: float, read: float) -> Work:
    """`taps` input values per output value and input channel; `read` input samples a second."""
    flops = 2 * per_second * outputs * taps
    return Work(flops, FLOAT32 * (read * inputs + per_second * outputs))


def _each(values: int, channels: int, rate: float) -> Work:
    return Work(0.0, FLOAT32 * values * channels * rate)


@dataclass(frozen=True)
class Codec:
    """A SNAC model with depthwise convolutions and without attention, as at 24 kHz."""

    encoder_dim: int
    decoder_dim: int
    encoder_rates: tuple[int, ...] = (2, 4, 8, 8)
    decoder_rates: tuple[int, ...] = (8, 8, 4, 2)
    strides: tuple[int, ...] = (4, 2, 1)
    codebook_size: int = 4096
    codebook_dim: int = 8
    sample_rate: int = 24_000

    @staticmethod
    def of(config: dict[str, Any]) -> "Codec":
        if not config["depthwise"] or config["attn_window_size"]:
            raise ValueError("counted for depthwise convolutions without attention alone")
        return Codec(
            config["encoder_dim"],
            config["decoder_dim"],
            tuple(config["encoder_rates"]),
            tuple(config["decoder_rates"]),
            tuple(config["vq_strides"]),
            config["codebook_size"],
            config["codebook_dim"],
            config["sampling_rate"],
        )

    @property
    def latents_per_second(self) -> float:
        return self.sample_rate / math.prod(self.encoder_rates)

    @property
    def frames_per_second(self) -> float:
        return self.latents_per_second / self.strides[0]

    @property
    def tokens_per_second(self) -> float:
        return sum(self.latents_per_second / stride for stride in self.strides)

    @property
    def width(self) -> int:
        """Channels of a latent."""
        return self.encoder_dim << len(self.encoder_rates)

    def _units(self, channels: int, rate: float, clears: bool) -> Work:
        unit = _each(SNAKE_VALUES, channels, rate) * 2 + _each(ADD_VALUES, channels, rate)
        unit += _conv(channels, channels, KERNEL, rate, rate)
        unit += _conv(channels, channels, channels, rate, rate)
        return (unit + _each(CLEAR_VALUES * clears, channels, rate)) * UNITS

    def encoding(self) -> Work:
        """Of a second of audio, quantizers included."""
        rate, channels = float(self.sample_rate), self.encoder_dim
        work = _conv(1, channels, KERNEL, rate, rate) + _each(CLEAR_VALUES, channels, rate)
        for step in self.encoder_rates:
            work += self._units(channels, rate, clears=True)
            work += _each(SNAKE_VALUES, channels, rate)
            work += _conv(channels, 2 * channels, 2 * step * channels, rate / step, rate)
            rate, channels = rate / step, 2 * channels
            work += _each(CLEAR_VALUES, channels, rate)
        work += _conv(channels, channels, KERNEL, rate, rate)
        for stride in self.strides:
            codes, dim = rate / stride, self.codebook_dim
            work += _conv(channels, dim, channels, codes, codes)
            work += _conv(dim, self.codebook_size, dim, codes, codes)
            work += _conv(dim, channels, dim, codes, codes)
        return work

    def decoding(self) -> Work:
        """Of a second of audio, without the context that windows decode again. The latents are
        looked up in tables; the noise is on."""
        rate, channels = self.latents_per_second, self.decoder_dim
        work = _conv(self.width, self.width, KERNEL, rate, rate)
        work += _conv(self.width, channels, self.width, rate, rate)
        for step in self.decoder_rates:
            work += _each(SNAKE_VALUES, channels, rate)
            # Two taps of every input channel for each output.
            work += _conv(channels, channels // 2, 2 * channels, rate * step, rate)
            rate, channels = rate * step, channels // 2
            work += _conv(channels, channels, channels, rate, rate)
            work += _each(2 + ADD_VALUES, channels, rate)
            work += self._units(channels, rate, clears=False)
        work += _each(SNAKE_VALUES, channels, rate)
        return work + _conv(channels, 1, KERNEL * channels, rate, rate)


@dataclass(frozen=True)
class Base:
    """A Qwen3 model with the codec's rows in its tied table: `vocabulary` counts them."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    codebook_size: int = 4096

    @staticmethod
    def of(name: str, folder: Path) -> "Base":
        config = json.loads((folder / "config.json").read_text("utf-8"))
        return Base(
            name,
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            config["num_attention_heads"],
            config["num_key_value_heads"],
            config["head_dim"],
            config["vocab_size"],
        )

    @property
    def body(self) -> int:
        """Weights but the table."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        norms = 2 * self.hidden + 2 * self.head_dim
        layer = attention + 3 * self.hidden * self.intermediate + norms
        return self.layers * layer + self.hidden

    @property
    def weights(self) -> int:
        return self.body + self.vocabulary * self.hidden

    @property
    def position_values(self) -> int:
        """Keys and values of a position."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def step(self, streams: float, positions: float, itemsize: int, levels: int = 3) -> Work:
        """Of a pass of `streams` tokens with `positions` behind each: the weights and the rows of
        the levels at hand once, every stream's keys and values."""
        rows = self.codebook_size * min(streams, levels)
        weights = self.body + rows * self.hidden
        scores = 2 * self.layers * self.heads * self.head_dim * positions
        token = self.body + self.codebook_size * self.hidden + scores
        kept = streams * positions * self.position_values
        return Work(2 * streams * token, itemsize * (weights + kept))

    def training(self, tokens: float, targets: float) -> Work:
        """Forward and backward pass, as `training_flops`: six FLOPs per weight, without scores."""
        head = self.codebook_size * self.hidden
        return Work(6 * (tokens * self.body + targets * head))


@dataclass(frozen=True)
class Whisper:
    """A Whisper model: its encoder reads a window of 30 s, however short the clip in it is."""

    name: str
    width: int
    encoder_layers: int
    decoder_layers: int
    mels: int = 80
    vocabulary: int = 51_865
    frames: int = 3000
    """Of a window's spectrogram; the encoder has half as many positions."""

    @property
    def positions(self) -> int:
        return self.frames // 2

    def window(self, itemsize: int) -> Work:
        """Encoding a window, and the keys and values that the decoder's layers make of it. Reads
        the weights once; activations are not counted."""
        convolutions = (
            self.width * KERNEL_OF_MELS * (self.frames * self.mels + self.positions * self.width)
        )
        scores = 2 * self.positions**2 * self.width
        layers = self.encoder_layers * (12 * self.width**2 * self.positions + scores)
        kept = self.decoder_layers * 2 * self.width**2 * self.positions
        weights = 12 * self.encoder_layers * self.width**2
        return Work(2 * (convolutions + layers + kept), itemsize * weights)

    def step(self, clips: float, itemsize: int, tokens: float = 1) -> Work:
        """So many tokens of each of the clips: the weights once, each clip's keys and values of
        its window."""
        weights = self.decoder_layers * 14 * self.width**2 + self.vocabulary * self.width
        kept = 2 * self.decoder_layers * self.positions * self.width
        flops = 2 * clips * tokens * (weights + kept)
        return Work(flops, itemsize * (weights + clips * kept))
