"""The codec: waveforms <-> codes, in batches.

Owns loading a SNAC model (a folder or a hub id), the precision of a GPU while it computes, and
decoding in which the noise of SNAC's NoiseBlocks is a function of (seed, sample position), so that
a window of an utterance decodes to the samples that the whole utterance has there. Knows nothing
about tokens.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, Snake1d
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sheen import rng
from sheen.codec.inference import (
    ClipEncoder,
    DilatedConv,
    InPlaceSnake,
    TransposedConv,
    clear,
    cut_batches,
)
from sheen.codec.layout import Codes
from sheen.codec.transfer import Transfers, to_device
from sheen.codec.windows import WindowCodec

FEWEST_FRAMES = 3
"""That a CPU decodes: with AVX2 kernels, one or two frames round otherwise than more (decision
0024)."""
BATCH_SAMPLES = 24_000 * 120
"""Samples of a batch on a GPU with padding: an activation of the published shape takes 0.55 GB."""

_lock = threading.Lock()
_inside = 0
_outside: list[str] = []
"""The settings before the first context was entered."""


@contextmanager
def full_float32() -> Iterator[None]:
    """cuDNN computes in float32 within, for every thread, while a codec computes on a GPU.

    TF32's 10 bits break near ties between codes otherwise than a CPU, and make windows differ from
    the whole (decision 0022). The setting is the process's: it holds for all threads, and lasts
    until the last of those that ask for it has left. All of cuDNN's settings say so: where they
    differ, reading them by torch's older API, as other libraries do, is an error.
    """
    global _inside, _outside
    cudnn: Any = torch.backends.cudnn  # torch's stub lacks its parts
    parts = cudnn.conv, cudnn.rnn
    with _lock:
        if _inside == 0:
            _outside = [part.fp32_precision for part in parts]
            cudnn.allow_tf32 = False
            for part in parts:
                part.fp32_precision = "ieee"  # also where all of torch was told otherwise
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                cudnn.allow_tf32 = _outside[0] == "tf32"
                for part, before in zip(parts, _outside, strict=True):
                    part.fp32_precision = before


class Codec(WindowCodec):
    """A SNAC model ready for inference on one device; see `load_codec`.

    `source` is the folder or hub id it was loaded from, `arguments` are SNAC's own, if it was.
    """

    def __init__(
        self,
        model: SNAC,
        device: torch.device,
        source: str = "",
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        self.source = source
        self.arguments = arguments
        modules = list(model.modules())
        for module in modules:
            # weight_norm recomputes each weight on every forward; folded once, encoding takes
            # less than half the time on a CPU.
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
        for module in modules:
            for name, part in module.named_children():
                if isinstance(part, Snake1d):
                    setattr(module, name, InPlaceSnake(part))
                elif DilatedConv.fits(part):
                    setattr(module, name, DilatedConv(part))
                elif device.type == "cpu" and TransposedConv.fits(part):
                    setattr(module, name, TransposedConv(part))
        self.model = model.eval().requires_grad_(False).to(device)
        self._encoder = ClipEncoder(self.model)
        self._tables: list[Tensor] = []
        self.device = device
        self._transfers = Transfers(device)

    def to(self, device: str | torch.device) -> Self:
        """Move to a device, in place."""
        self.device = torch.device(device)
        self.model.to(self.device)
        self._tables = []
        self._transfers = Transfers(self.device)
        return self

    @torch.inference_mode()
    @full_float32()
    def encode(
        self, waveforms: Sequence[Tensor], budget: int = BATCH_SAMPLES, batch: bool | None = None
    ) -> list[Codes]:
        """Codes of each waveform `[n]` (float32, at the codec's rate, n >= 1).

        On a CPU each clip is encoded by itself: batches gain nothing there, and how a batch rounds
        decides a near tie of two codes. On a GPU clips are batched, `budget` padded samples at a
        time, in one of few shapes, and no clip sees its padding. `batch` decides otherwise. The
        codes of a batch are fetched when the next one is on its way.
        """
        block = self.frame_samples * self.block_frames
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or len(waveform) == 0:
                raise ValueError(
                    f"waveform {index} has shape {tuple(waveform.shape)}, expected [n]"
                )
        lengths = [-(-len(waveform) // block) * block for waveform in waveforms]
        if batch is None:
            batch = self.device.type != "cpu"
        batches: Iterable[tuple[list[int], tuple[int, int]]] = (
            ([index], (1, length)) for index, length in enumerate(lengths)
        )
        if batch:
            batches = cut_batches(lengths, budget, block)
        encoded: dict[int, Codes] = {}
        on_its_way: Callable[[], dict[int, Codes]] = dict
        for members, shape in batches:
            padded = self._transfers.zeros(*shape)
            for row, index in enumerate(members):
                padded[row, : len(waveforms[index])] = waveforms[index]
            own = {index: lengths[index] for index in members}
            fetch = self._encode_batch(self._transfers.upload(padded), own, batch)
            encoded |= on_its_way()
            on_its_way = fetch
        encoded |= on_its_way()
        return [encoded[index] for index in range(len(waveforms))]

    def _encode_batch(
        self, padded: Tensor, lengths: Mapping[int, int], batch: bool
    ) -> Callable[[], dict[int, Codes]]:
        """Begin to encode clips `[B, T]`; a function that waits for their codes, by the keys of
        their lengths."""
        if batch:
            latents = self._encoder.together(padded, [*lengths.values()])
        else:
            latents = self._encoder.alone(padded[0])
        levels = self.model.quantizer(latents)[1]
        # One copy to the host for the whole batch.
        fetch = self._transfers.download(torch.cat(levels, dim=1).to(torch.int16))
        splits = np.cumsum([level.shape[1] for level in levels])[:-1]

        def codes() -> dict[int, Codes]:
            # Copies: views would keep the whole batch's memory.
            flat = fetch().numpy().copy()
            return {
                index: [
                    level[: length // (self.hop * stride)]
                    for level, stride in zip(np.split(flat[row], splits), self.strides, strict=True)
                ]
                for row, (index, length) in enumerate(lengths.items())
            }

        return codes

    @torch.inference_mode()
    @full_float32()
    def decode(
        self,
        codes: Sequence[NDArray[np.int16]],
        seeds: Sequence[int] | None = None,
        first_frames: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        frames = codes[0].shape[1]
        computed = max(frames, FEWEST_FRAMES) if self.device.type == "cpu" else frames
        pad = computed - frames + -computed % self.block_frames
        levels = []
        for level, stride in zip(codes, self.strides, strict=True):
            tensor = torch.from_numpy(np.ascontiguousarray(level)).long()
            levels.append(nn.functional.pad(tensor, (0, pad * self.strides[0] // stride)))
        x = self._latents([level.to(self.device) for level in levels])
        batch = x.shape[0]
        keys = None if seeds is None else torch.tensor(list(seeds), device=self.device)
        starts = torch.tensor(list(first_frames or [0] * batch), device=self.device)
        beyond = self._beyond(lengths or [frames] * batch, x.shape[-1])
        x = clear(x, beyond)
        rate, block_index = 1, 0  # samples per latent so far, and which upsampling block
        for layer in self.model.decoder.model:
            if not isinstance(layer, DecoderBlock):
                x = clear(layer(x), beyond)
                continue
            rate *= int(self.model.decoder_rates[block_index])
            for part in layer.block:
                if not isinstance(part, NoiseBlock):
                    x = part(x)
                elif keys is not None:
                    first_sample = starts * (self.strides[0] * rate)
                    at = first_sample[:, None] + torch.arange(x.shape[-1], device=self.device)
                    noise = rng.normal(keys, rng.NOISE + block_index, at).to(x.dtype)
                    x = x + noise[:, None, :] * part.linear(x)
                x = clear(x, beyond)
            block_index += 1
        return x[:, 0, : frames * self.frame_samples].float().cpu()

    def _beyond(self, lengths: Sequence[int], latents: int) -> Tensor | None:
        """`[B, 1, samples]`: which samples lie beyond the rows' own blocks; None if none does."""
        block = self.frame_samples * self.block_frames
        ends = [-(-length // self.block_frames) * block for length in lengths]
        samples = latents * self.hop
        if min(ends) >= samples:
            return None
        at = torch.arange(samples, device=self.device)
        return (at >= to_device(torch.tensor(ends), self.device)[:, None])[:, None]

    def _latents(self, levels: Sequence[Tensor]) -> Tensor:
        """Latents `[B, D, T]` of codes `[B, T / stride]` of each level.

        Looked up, because a product with as few columns as a window has codes of the coarse level
        rounds by their number. Made at first use: 38 MB for the published codec.
        """
        if not self._tables:
            self._tables = [
                quantizer.out_proj(quantizer.codebook.weight.T[None])[0].T.contiguous()
                for quantizer in self.model.quantizer.quantizers
            ]
        parts = [
            nn.functional.embedding(level, table).repeat_interleave(stride, dim=1)
            for level, table, stride in zip(levels, self._tables, self.strides, strict=True)
        ]
        return sum(parts[1:], parts[0]).transpose(1, 2)


def open_codec(source: str, from_scratch: bool = False) -> tuple[SNAC, dict[str, Any]]:
    """A SNAC model in float32 as it is published, weight norm and all, and its config.

    `source` is a folder or hub id. With `from_scratch` only its shape is taken (`source` may then
    be a JSON file of SNAC's own arguments) and the weights are random. Raises ValueError.
    """
    # Here, and not above: a codec that is already in memory needs neither pydantic nor pyarrow.
    from sheen.codec.info import CONFIG_FILE, WEIGHTS_FILE, find_codec, read_config

    shape_only = from_scratch and Path(source).expanduser().is_file()
    path = Path(source).expanduser() if shape_only else find_codec(source) / CONFIG_FILE
    try:
        config = read_config(path)
        model = SNAC(**config)
        if math.prod(model.encoder_rates) != math.prod(model.decoder_rates):
            raise ValueError("encoder_rates and decoder_rates multiply to different numbers")
        if not from_scratch:
            # SNAC.from_pretrained unpickles whatever the file holds; this accepts tensors only.
            weights = path.parent / WEIGHTS_FILE
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # torn pickles alone raise a dozen kinds
        # torch advises on other loads over several lines.
        reason = str(error).splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"codec {source!r}: not a SNAC codec ({reason[0]})") from error
    return model.float(), config


def load_codec(source: str, device: str | torch.device = "cpu") -> Codec:
    """Load a codec for inference from a folder or a hub id, in float32 with folded weights."""
    model, arguments = open_codec(source)
    return Codec(model, torch.device(device), source, arguments)


def inference_copy(model: SNAC, config: dict[str, Any], device: torch.device) -> Codec:
    """The codec as it stands, ready for inference; `model` stays as it is.

    Not a deep copy: folding the weights of one takes the weight property off the class that it
    shares with its original.
    """
    twin = SNAC(**config)
    twin.load_state_dict(model.state_dict())
    return Codec(twin, device)
