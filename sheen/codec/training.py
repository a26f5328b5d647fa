"""Training a SNAC codec: its losses, the restart of unused codes, the average of its weights.

Owns what the published package lacks (hubertsiuzdak/snac #19, #31): the training forward of
the residual quantizer and everything that must happen around an optimizer step. The quantizer's
losses are those of VQ-VAE (van den Oord et al. 2017) as in the Descript Audio Codec, whose design
SNAC shares; an adversary is in `discriminators`. Knows nothing of files of recordings, devices or
Ray.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from snac import SNAC
from snac.layers import Snake1d
from torch import Tensor, nn

from sheen.audio.spectral import RANGE_DB, SpectralLoss, waveform_distance
from sheen.codec.asr_features import AsrFeatureLoss
from sheen.codec.info import CONFIG_FILE, WEIGHTS_FILE
from sheen.codec.transfer import to_device


@dataclass(frozen=True)
class Quantized:
    """One pass through the residual quantizer.

    `latents` is the decoder's input `[B, D, T]`. Per level: `codes` `[B, T / stride]`, and
    `vectors` `[B * T / stride, codebook_dim]`, what each code was chosen for. The losses are
    scalars, summed over levels.
    """

    latents: Tensor
    codes: list[Tensor]
    vectors: list[Tensor]
    commitment: Tensor
    codebook: Tensor


@dataclass(frozen=True)
class CodecLosses:
    """Scalars of a batch, and what the codes were chosen for (see `Quantized`).

    `asr_features` is None without a speech encoder.
    """

    mel: Tensor
    stft: Tensor
    waveform: Tensor
    commitment: Tensor
    codebook: Tensor
    codes: list[Tensor]
    vectors: list[Tensor]
    asr_features: Tensor | None = None


class TrainableSnake(nn.Module):
    """SNAC's activation and parameter in plain torch.

    TorchScript computes the parameter's gradient otherwise in the first calls of a process, so that
    a resumed run would drift from one that never stopped; and torch.compile stops at it.
    """

    def __init__(self, alpha: nn.Parameter) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).square()


def use_plain_activations(model: SNAC) -> None:
    """Make the model's activations `TrainableSnake`; the names in its state stay as they are."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Snake1d):
                setattr(module, name, TrainableSnake(child.alpha))


def compile_stacks(model: SNAC) -> None:
    """Compile the two stacks of convolutions; the names in the state stay as they are."""
    # Dynamo would cut the graphs at DDP's gradient buckets; the stacks are compiled whole.
    torch._dynamo.config.optimize_ddp = False
    model.encoder.compile()
    model.decoder.compile()


class Distances(nn.Module):
    """Distances of decoded audio from the recording, by name. Nothing here is trained.

    With `asr_features` the distance in a frozen ASR encoder's features is among them.
    """

    def __init__(
        self,
        sample_rate: int,
        range_db: float = RANGE_DB,
        asr_features: AsrFeatureLoss | None = None,
    ) -> None:
        super().__init__()
        self.spectral = SpectralLoss(sample_rate, range_db=range_db)
        self.asr_features = asr_features

    def forward(self, decoded: Tensor, audio: Tensor) -> dict[str, Tensor]:
        """Scalars `mel`, `stft`, `waveform`, and maybe `asr_features`, of audio `[B, n]`."""
        # Spectra in float32 whatever autocast is on: bfloat16 has no bits for quiet bands.
        with torch.autocast(audio.device.type, enabled=False):
            decoded = decoded.float()
            terms = self.spectral(decoded, audio)
            distances = {
                "mel": terms.mel,
                "stft": terms.stft,
                "waveform": waveform_distance(decoded, audio),
            }
            if self.asr_features is not None:
                distances["asr_features"] = self.asr_features(decoded, audio)
        return distances


class TrainableCodec(nn.Module):
    """A SNAC model with its losses: what a data-parallel wrapper wraps.

    The model's activations become `TrainableSnake`. `asr_features`: see `Distances`.
    `quantizer_dropout` is the share of rows that are decoded from their first levels alone, one or
    more of them, as in SoundStream (Zeghidour et al. 2021): these then carry more.
    """

    def __init__(
        self,
        model: SNAC,
        range_db: float = RANGE_DB,
        asr_features: AsrFeatureLoss | None = None,
        quantizer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if quantizer_dropout and model.n_codebooks == 1:
            raise ValueError("quantizer dropout needs a codec of two levels or more; this has one")
        use_plain_activations(model)
        self.model = model
        self.distances = Distances(int(model.sampling_rate), range_db, asr_features)
        self.quantizer_dropout = quantizer_dropout

    def forward(self, audio: Tensor) -> CodecLosses:
        """Of audio `[B, n]`, n a multiple of the codec's block of samples."""
        kept = None
        if self.quantizer_dropout:
            kept = to_device(self._levels_kept(len(audio)), audio.device)
        quantized = quantize(self.model, self.model.encoder(audio[:, None]), kept)
        decoded = self.model.decoder(quantized.latents)[:, 0]
        return CodecLosses(
            **self.distances(decoded, audio),
            commitment=quantized.commitment,
            codebook=quantized.codebook,
            codes=quantized.codes,
            vectors=quantized.vectors,
        )

    def _levels_kept(self, rows: int) -> Tensor:
        """`[rows]`: of how many levels each is decoded."""
        levels = self.model.n_codebooks
        some = torch.randint(1, levels, (rows,))
        return torch.where(torch.rand(rows) < self.quantizer_dropout, some, levels)


def quantize(model: SNAC, latents: Tensor, kept: Tensor | None = None) -> Quantized:
    """The quantizer's forward with its losses; `latents` is the encoder's output `[B, D, T]`.

    With `kept` `[B]` only so many levels of each row are in the decoder's input; codes, vectors and
    the quantizer's own losses are always of all.

    The published forward drops the distances that the losses need. Gradients pass to the encoder by
    the straight-through estimator, as there.
    """
    output = torch.zeros_like(latents)
    residual = latents
    codes, vectors = [], []
    commitment = codebook = latents.new_zeros((), dtype=torch.float32)
    for level, quantizer in enumerate(model.quantizer.quantizers):
        stride = quantizer.stride
        pooled = F.avg_pool1d(residual, stride, stride) if stride > 1 else residual
        # Nearest codes in float32: ties are common, and bfloat16 makes more of them.
        with torch.autocast(latents.device.type, enabled=False):
            wanted = quantizer.in_proj(pooled.float())
            chosen, indices = quantizer.decode_latents(wanted)
            commitment = commitment + F.mse_loss(wanted, chosen.detach())
            codebook = codebook + F.mse_loss(chosen, wanted.detach())
            step = quantizer.out_proj(wanted + (chosen - wanted).detach())
        step = step.repeat_interleave(stride, dim=-1)
        decoded = step if kept is None else step * (kept > level).to(step)[:, None, None]
        output = output + decoded
        residual = residual - step
        codes.append(indices)
        vectors.append(wanted.detach().transpose(1, 2).reshape(-1, wanted.shape[1]))
    return Quantized(output, codes, vectors, commitment, codebook)


class CodeUsage:
    """Which codes are in use: for each, how many codes of its level ago it was last chosen.

    Unused after `patience` times the codebook's size: at 4, a code chosen as often as the average
    is called unused by mistake once in e⁴ ≈ 55 times. All of it stays on the codec's device, and
    nothing waits for that.
    """

    def __init__(
        self, levels: int, size: int, patience: float, device: torch.device | None = None
    ) -> None:
        self.age = torch.zeros(levels, size, dtype=torch.int64, device=device)
        self.restarted = torch.zeros(levels, dtype=torch.int64, device=device)
        self._limit = int(patience * size)

    def count(self, codes: Sequence[Tensor]) -> None:
        """Count one step's codes, given per level."""
        for age, level in zip(self.age, codes, strict=True):
            age += level.numel()
            age.index_fill_(0, level.flatten(), 0)

    def oldest(self, level: int) -> tuple[Tensor, Tensor]:
        """The level's codes `[size]`, longest unused first, and which of them are unused."""
        age = self.age[level]
        codes = age.argsort(descending=True, stable=True)
        return codes, age[codes] > self._limit

    def state_dict(self) -> dict[str, Tensor]:
        return {"age": self.age, "restarted": self.restarted}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.age.copy_(state["age"])
        self.restarted.copy_(state["restarted"])


AVERAGE_DECAY = 0.999
"""Of the weights' average, per step, from step 9,000 on."""


class WeightAverage:
    """Exponential average of the weights, the one that is saved and evaluated.

    `decay` is reached as (1 + t) / (10 + t) rises (Tarvainen and Valpola 2017), so that the first
    weights of a training from scratch are soon forgotten. The state is that of torch's
    AveragedModel, which copies its count to the device at every update, and so waits for it.
    """

    def __init__(self, model: SNAC, decay: float = AVERAGE_DECAY) -> None:
        self.model = copy.deepcopy(model)
        self._decay, self._count = decay, 0

    @torch.no_grad()
    def update(self, model: SNAC) -> None:
        count = self._count
        now = min(self._decay, (1 + count) / (10 + count)) if count else 0.0
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - now)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self._count += 1

    def state_dict(self) -> dict[str, Any]:
        weights = {f"module.{name}": part for name, part in self.model.state_dict().items()}
        return {"n_averaged": torch.tensor(self._count)} | weights

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = {name.removeprefix("module."): part for name, part in state.items()}
        self._count = int(weights.pop("n_averaged"))
        self.model.load_state_dict(weights)


@torch.no_grad()
def restart_unused(
    model: SNAC,
    average: SNAC,
    optimizer: torch.optim.Optimizer,
    usage: CodeUsage,
    vectors: Sequence[Tensor],
    generator: torch.Generator,
    allowed: Tensor | None = None,
) -> Tensor:
    """Move unused codes to vectors that the encoder made in this step; returns how many.

    Each code gets another vector, so at most as many codes move as there are vectors. The
    optimizer's moments of the moved rows are forgotten, and the average takes the new rows as they
    are: both spoke of codes that no longer exist. `allowed`: if false, no code moves.

    How many codes are unused is known on the device alone, so all that could move are written, most
    of them with the values that they have.
    """
    counts = []
    for level, quantizer in enumerate(model.quantizer.quantizers):
        found = vectors[level]
        codes, unused = (part[: len(found)] for part in usage.oldest(level))
        if allowed is not None:
            unused = unused & allowed
        picks = torch.randperm(len(found), generator=generator)[: len(codes)]
        weight = quantizer.codebook.weight
        rows = found[to_device(picks, found.device)].to(weight.dtype)
        averaged = average.quantizer.quantizers[level].codebook.weight
        moments = [
            moment
            for moment in optimizer.state.get(weight, {}).values()
            if torch.is_tensor(moment) and moment.shape == weight.shape
        ]
        for part in (weight, averaged, *moments):
            new = rows if part is weight or part is averaged else torch.zeros_like(rows)
            part.index_copy_(0, codes, torch.where(unused[:, None], new, part[codes]))
        age = usage.age[level]
        age.index_copy_(0, codes, torch.where(unused, 0, age[codes]))
        counts.append(unused.sum())
    moved = torch.stack(counts)
    usage.restarted += moved
    return moved.sum()


@dataclass(frozen=True)
class CodecFiles:
    """The folder of a codec in training, but for its weights, which are stored in `dtype`."""

    config: dict[str, Any]
    dtype: torch.dtype

    def write(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """Write a folder that `snac.SNAC.from_pretrained` opens."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.to("cpu", self.dtype) for name, tensor in weights.items()}
        torch.save(state, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(self.config, indent=2) + "\n", "utf-8")
