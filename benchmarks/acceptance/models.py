"""The models of the acceptance: published shapes with random weights, and two small references.

Owns how the references' weights and inputs are drawn: by numpy's generator and exact arithmetic,
so that every machine has the same to the bit. (torch's own normal draws depend on a processor's
vector units, and a GPU draws other numbers.) What they give on a CPU is kept beside this file, see
`references`. The shipped voice and codec are no references: theirs would have to be made anew with
every voice that is committed, and no recording can be decoded where PyAV is missing.
"""

import copy
import functools
import hashlib
import math

import numpy as np
import torch
from numpy.typing import NDArray
from published import PUBLISHED
from snac import SNAC
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from workload import Shape, make_base

from sheen.codec.layout import TokenLayout
from sheen.codec.snac import Codec
from sheen.lm.model import SpeechLM

RATE = 24_000
REFERENCE = Shape(4, hidden=256, intermediate=768, heads=4, kv_heads=2, head_dim=64, vocabulary=512)
LOUDEST = 0.3
"""Of full scale: of speech that a codec of random weights decodes, once it is made as loud."""
EMBEDDING = 3.0
"""Norm of a row of the reference's table: logits then differ by several nats, as a voice's do."""


def fill(module: nn.Module, seed: int) -> None:
    """Weights drawn uniformly, of a variance that keeps the scale of what passes through them."""
    generator = np.random.default_rng(seed)
    for part in list(module.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight")
    seen: set[int] = set()  # tables that are the head too
    for part in module.modules():
        for name, weight in part.named_parameters(recurse=False):
            # Norms' weights and activations' factors stay ones.
            if (weight.ndim < 2 and name == "weight") or name == "alpha" or id(weight) in seen:
                continue
            seen.add(id(weight))
            shape = tuple(weight.shape)
            if isinstance(part, nn.ConvTranspose1d) and weight.ndim > 1:
                inputs = shape[0] * shape[2] / part.stride[0]
            else:
                inputs = math.prod(shape[1:]) if weight.ndim > 1 else 100
            bound = math.sqrt(3 / inputs)
            if isinstance(part, nn.Embedding):
                bound = 1.0 if shape[1] < 16 else EMBEDDING * math.sqrt(3 / shape[1])
            drawn = (2 * generator.random(shape) - 1) * bound
            with torch.no_grad():  # not before: a folded weight would be no parameter any more
                weight.copy_(torch.from_numpy(drawn.astype(np.float32)))


def digest(module: nn.Module) -> str:
    """A hash of the weights: whether they are those that the references were made with."""
    found = hashlib.sha256()
    for weight in module.state_dict().values():
        found.update(weight.detach().cpu().contiguous().float().numpy().data)
    return found.hexdigest()[:16]


LOUDER = 32
"""Of the encoder's first layer: louder than the activations' squares, which are all positive. With
random weights these would add up until all sounds had the same codes."""


@functools.cache
def _drawn_snac(encoder_dim: int, decoder_dim: int, seed: int) -> SNAC:
    """Of the published 24 kHz shape, but for the numbers of channels. To be copied: parts ask for
    the same one several times, and drawing takes longer than most of what they do with it."""
    model = SNAC(**PUBLISHED | {"encoder_dim": encoder_dim, "decoder_dim": decoder_dim})
    fill(model, seed)
    with torch.no_grad():
        model.encoder.block[0].weight.mul_(LOUDER)
    return model


def reference_snac() -> SNAC:
    return copy.deepcopy(_drawn_snac(16, 128, seed=1))


def published_snac(small: bool) -> SNAC:
    """What it encodes and decodes costs what it costs a trained one."""
    dims = (8, 64) if small else (PUBLISHED["encoder_dim"], PUBLISHED["decoder_dim"])
    return copy.deepcopy(_drawn_snac(*dims, seed=5))


def reference_codec(device: torch.device) -> Codec:
    codec = Codec(reference_snac(), device)
    set_loudness(codec)
    return codec


def published_codec(device: torch.device, small: bool) -> Codec:
    codec = Codec(published_snac(small), device)
    set_loudness(codec)
    return codec


@torch.no_grad()
def set_loudness(codec: Codec) -> None:
    """Let it decode at LOUDEST or so. By a power of two, which rounds no weight."""
    frames = 16
    codes = [
        (np.arange(frames * count, dtype=np.int64) * 977 % codec.codebook_size).astype(np.int16)
        for count in codec_layout(codec).codes_per_frame
    ]
    final = codec.model.decoder.model[-2]
    # Where all samples are clipped at full scale, by a quarter at a time.
    for _ in range(16):
        loudest = float(codec.decode([level[None] for level in codes]).abs().max())
        if loudest <= LOUDEST:
            break
        scale = 2.0 ** math.floor(math.log2(LOUDEST / loudest))
        final.weight.mul_(scale)
        final.bias.mul_(scale)


def codec_layout(codec: Codec, first_id: int = REFERENCE.vocabulary) -> TokenLayout:
    return TokenLayout(first_id, codec.codebook_size, codec.strides)


@functools.cache
def _drawn_lm() -> PreTrainedModel:
    """To be copied, as those of `_drawn_snac`."""
    lm = make_base(REFERENCE)
    fill(lm, seed=2)
    return lm


def reference_lm(device: torch.device, dtype: torch.dtype = torch.float32) -> SpeechLM:
    """In evaluation mode, and not frozen."""
    lm = copy.deepcopy(_drawn_lm())
    if dtype != torch.float32:
        rounded = make_base(REFERENCE, dtype=dtype)
        with torch.no_grad():
            for ours, theirs in zip(rounded.parameters(), lm.parameters(), strict=True):
                ours.copy_(theirs)
        lm = rounded
    return SpeechLM(lm.eval().to(device), REFERENCE.layout)


def published_lm(device: torch.device, dtype: torch.dtype, small: bool) -> SpeechLM:
    """Qwen3-0.6B's shape with the codec's rows, made on the device; not frozen."""
    shape = Shape(2).small if small else Shape(28)
    return SpeechLM(make_base(shape, device, dtype), shape.layout)


def serving_lm(device: torch.device, small: bool) -> SpeechLM:
    """The same as a server has it: in bfloat16 on a GPU, frozen."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = published_lm(device, dtype, small)
    model.freeze()
    return model


def reference_clips(count: int = 40, shortest: float = 0.3, longest: float = 2.0) -> list[Tensor]:
    """Buzzes and noise that come and go, `[n]`. Exact arithmetic alone: no sine, no power."""
    generator = np.random.default_rng(3)
    clips = []
    for length in generator.uniform(shortest, longest, count):
        samples = int(length * RATE)
        at = np.arange(samples)
        turn = (at * int(generator.integers(80, 250)) % RATE) / RATE  # of the buzz's phase
        swell = (at * int(generator.integers(2, 5)) % RATE) / RATE
        loud = 1 - np.abs(2 * swell - 1)
        noise = 2 * generator.random(samples) - 1
        wave = loud * (0.4 * (turn - 0.5) + 0.04 * noise)
        clips.append(torch.from_numpy(wave.astype(np.float32)))
    return clips


def reference_prompts() -> list[list[int]]:
    """Of 5 to 400 tokens; the engine takes the longest in two chunks."""
    generator = np.random.default_rng(4)
    lengths = (5, 12, 40, 100, 180, 256, 257, 400)
    vocabulary, start = REFERENCE.vocabulary, REFERENCE.layout.start_id
    return [[*generator.integers(1, vocabulary, length - 1).tolist(), start] for length in lengths]


def random_codes(layout: TokenLayout, frames: int, seed: int) -> NDArray[np.int16]:
    """`[frames, tokens_per_frame]`."""
    generator = np.random.default_rng(seed)
    shape = frames, layout.tokens_per_frame
    return generator.integers(layout.codebook_size, size=shape).astype(np.int16)
