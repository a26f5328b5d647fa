"""The codec: waveforms <-> codes, in batches.

Owns loading a SNAC model (a folder or a hub id), its geometry in samples and latents, and the
identity (weight hash and config) that datasets and checkpoints carry. Decoding takes the noise of
SNAC's NoiseBlocks as a function of (seed, sample position), so that a window of an utterance
decodes to the samples that the whole utterance has there. Knows nothing about tokens.
"""

import hashlib
import json
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from snac import SNAC
from snac.layers import DecoderBlock, NoiseBlock, Snake1d
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sheen.core import draws
from sheen.core.tokens import Codes

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "pytorch_model.bin"


class CodecInfo(BaseModel, extra="forbid"):
    """What a dataset or checkpoint says of its codec.

    `source` is the folder or hub id that the user named. With `embedded`, the folder that carries
    this record also holds a copy of the codec under `codec/`, because a path of one machine means
    nothing on the next.
    """

    source: str
    sha256: str
    config: dict[str, Any]
    embedded: bool

    @property
    def sample_rate(self) -> int:
        return int(self.config["sampling_rate"])

    @property
    def codebook_size(self) -> int:
        return int(self.config["codebook_size"])

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.config["vq_strides"])


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


class _Snake(nn.Module):
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


class Codec:
    """A SNAC model ready for inference on one device; see `load_codec`."""

    def __init__(self, model: SNAC, device: torch.device) -> None:
        for module in model.modules():
            # weight_norm recomputes each weight on every forward; folded once, encoding takes
            # less than half the time on a CPU.
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight")
            for name, part in module.named_children():
                if isinstance(part, Snake1d):
                    setattr(module, name, _Snake(part))
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
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

    def to(self, device: str | torch.device) -> Self:
        """Move to a device, in place."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    @torch.inference_mode()
    def encode(self, waveforms: Sequence[Tensor]) -> list[Codes]:
        """Codes of each waveform `[n]` (float32, at the codec's rate, n >= 1).

        Clips are batched only with clips of the same padded length, so no clip is padded further
        than alone: zeros past its own block would change its last codes.
        """
        block = self.frame_samples * self.block_frames
        groups: dict[int, list[int]] = {}
        for index, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or len(waveform) == 0:
                raise ValueError(
                    f"waveform {index} has shape {tuple(waveform.shape)}, expected [n]"
                )
            groups.setdefault(-(-len(waveform) // block), []).append(index)
        encoded: dict[int, Codes] = {}
        for blocks, members in groups.items():
            batch = torch.zeros(len(members), 1, blocks * block)
            for row, index in enumerate(members):
                batch[row, 0, : len(waveforms[index])] = waveforms[index]
            levels = self.model.encode(batch.to(self.device))
            # One copy to the host for the whole batch.
            flat = torch.cat(levels, dim=1).to(torch.int16).cpu().numpy()
            splits = np.cumsum([level.shape[1] for level in levels])[:-1]
            for row, index in enumerate(members):
                encoded[index] = list(np.split(flat[row], splits))
        return [encoded[index] for index in range(len(waveforms))]

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

    @torch.inference_mode()
    def decode(
        self,
        codes: Sequence[NDArray[np.int16]],
        seeds: Sequence[int] | None = None,
        first_frames: Sequence[int] | None = None,
    ) -> Tensor:
        """Samples `[B, frames * frame_samples]` (float32, on the CPU) of a batch of equal length.

        `codes` holds one array `[B, n]` per level. `seeds` `[B]` turns the codec's noise on (None:
        off); `first_frames` `[B]` says where in its utterance each row begins, so that its noise
        is the noise of those positions. Rows whose length is not a multiple of `block_frames` are
        padded with code 0 and the result trimmed.
        """
        frames = codes[0].shape[1]
        pad = -frames % self.block_frames
        levels = []
        for level, stride in zip(codes, self.strides, strict=True):
            tensor = torch.from_numpy(np.ascontiguousarray(level)).long()
            levels.append(nn.functional.pad(tensor, (0, pad * self.strides[0] // stride)))
        x = self.model.quantizer.from_codes([level.to(self.device) for level in levels])
        batch = x.shape[0]
        keys = None if seeds is None else torch.tensor(list(seeds), device=self.device)
        starts = torch.tensor(list(first_frames or [0] * batch), device=self.device)
        rate, block_index = 1, 0  # samples per latent so far, and which upsampling block
        for layer in self.model.decoder.model:
            if not isinstance(layer, DecoderBlock):
                x = layer(x)
                continue
            rate *= int(self.model.decoder_rates[block_index])
            for part in layer.block:
                if not isinstance(part, NoiseBlock):
                    x = part(x)
                elif keys is not None:
                    first_sample = starts * (self.strides[0] * rate)
                    at = first_sample[:, None] + torch.arange(x.shape[-1], device=self.device)
                    noise = draws.normal(keys, draws.NOISE + block_index, at).to(x.dtype)
                    x = x + noise[:, None, :] * part.linear(x)
            block_index += 1
        return x[:, 0, : frames * self.frame_samples].float().cpu()


def find_codec(source: str) -> Path:
    """The local folder of a codec: `source` itself, or the cached files of a hub id.

    Raises ValueError naming the source when it is neither.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith(("/", ".", "~")) or source.count("/") != 1:
            raise ValueError(
                f"codec {source!r}: no such folder; give a folder with {CONFIG_FILE} and "
                f"{WEIGHTS_FILE}, or a hub id such as hubertsiuzdak/snac_24khz"
            )
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            path = hf_hub_download(source, CONFIG_FILE)
            hf_hub_download(source, WEIGHTS_FILE)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise ValueError(
                f"codec {source!r}: not a folder here, and the hub did not give it ({error})"
            ) from error
        folder = Path(path).parent
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(f"codec {source!r}: {folder / name} is missing")
    return folder


def describe_codec(source: str) -> CodecInfo:
    """Identity of a codec, for dataset.json and the checkpoint."""
    folder = find_codec(source)
    with (folder / WEIGHTS_FILE).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
    embedded = Path(source).expanduser().is_dir()
    return CodecInfo(source=source, sha256=digest, config=config, embedded=embedded)


def open_codec(source: str, from_scratch: bool = False) -> tuple[SNAC, dict[str, Any]]:
    """A SNAC model in float32 as it is published, weight norm and all, and its config.

    `source` is a folder or hub id. With `from_scratch` only its shape is taken (`source` may then
    be a JSON file of SNAC's own arguments) and the weights are random. Raises ValueError.
    """
    shape_only = from_scratch and Path(source).expanduser().is_file()
    path = Path(source).expanduser() if shape_only else find_codec(source) / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
        model = SNAC(**config)
        if math.prod(model.encoder_rates) != math.prod(model.decoder_rates):
            raise ValueError("encoder_rates and decoder_rates multiply to different numbers")
        if not from_scratch:
            # SNAC.from_pretrained unpickles whatever the file holds; this accepts tensors only.
            weights = path.parent / WEIGHTS_FILE
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        ZeroDivisionError,
        OSError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(f"codec {source!r}: not a SNAC codec ({error})") from error
    return model.float(), config


def load_codec(source: str, device: str | torch.device = "cpu") -> Codec:
    """Load a codec for inference from a folder or a hub id, in float32 with folded weights."""
    model, _ = open_codec(source)
    return Codec(model, torch.device(device))
