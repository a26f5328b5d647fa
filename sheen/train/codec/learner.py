"""The codec under training: its optimizer, DDP wrapping, and what follows each step.

Owns the codebooks' own learning rate, the average of the weights, the restart of unused codes, and
the state that a resumed run needs of them. The noise of a step is a function of the run's seed,
the step and the rank. No step waits for the device: what it found stays there until it is read.
Knows nothing of recordings, logging, evaluation or saving.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from snac import SNAC
from torch import Tensor

from sheen.codec.asr_features import AsrFeatureLoss
from sheen.codec.training import (
    CodecLosses,
    CodeUsage,
    TrainableCodec,
    WeightAverage,
    compile_stacks,
    restart_unused,
)
from sheen.codec.transfer import to_device
from sheen.rng import step_seed
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.optimizers import Divergence, load_adam, on_host

CLIP_NORM = 10.0
"""Largest gradient norm."""
BETAS = (0.8, 0.99)
"""Adam's, as the Descript Audio Codec's."""
CODEBOOK_RATE = 10.0
"""Learning rate of the codebooks, relative to the rest's. A code is updated only when it is chosen,
the encoder at every step; codes that fall behind go out of use (docs/decisions/0010)."""


@dataclass(frozen=True)
class CodecStep:
    """The result of one step, scalars on the device: reading one waits for the step.

    norm: of the gradient, before clipping. losses: by name, this rank's, without their weights.
    restarted: the number of restarted codes, the same on every rank; None where none can be.
    """

    norm: Tensor
    losses: dict[str, Tensor]
    restarted: Tensor | None = None


class CodecLearner:
    """Trains `model`; `average` is the codec to save and to evaluate.

    loss_weights: the weight of each term of `CodecLosses`; others are ignored. asr_features: for
    the term of that name; it is not part of the state.
    """

    def __init__(
        self,
        model: SNAC,
        group: Collectives,
        *,
        loss_weights: Mapping[str, float],
        asr_features: AsrFeatureLoss | None,
        quantizer_dropout: float,
        learning_rate: float,
        restart_patience: float,
        compile_layers: bool,
        seed: int,
    ) -> None:
        self.model = model.to(group.device)
        self._group, self._seed = group, seed
        self._loss_weights = loss_weights
        self._average = WeightAverage(self.model)
        self._usage = CodeUsage(
            model.n_codebooks, model.codebook_size, restart_patience, group.device
        )
        trainable = TrainableCodec(
            self.model, asr_features=asr_features, quantizer_dropout=quantizer_dropout
        )
        if compile_layers:
            compile_stacks(self.model)
        self._module = group.data_parallel(trainable.to(group.device), broadcast_buffers=False)
        self.optimizer = torch.optim.Adam(
            parameter_groups(self.model),
            lr=learning_rate,
            betas=BETAS,
            fused=True,  # on CPUs too: what `Divergence` needs
        )
        self._divergence = Divergence(group.device)

    @property
    def average(self) -> SNAC:
        return self._average.model

    def update(self, audio: Tensor, step: int, rate: float) -> CodecStep:
        """One optimizer step on this rank's `[B, n]`; none from the first norm that is not finite
        on."""
        # The codec's noise of this step and rank, whatever ran before.
        torch.manual_seed(step_seed(self._seed, step, self._group.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]
        device = self._group.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            losses: CodecLosses = self._module(to_device(audio, device))
        terms = {name: getattr(losses, name) for name in self._loss_weights}
        torch.autograd.backward(weighted_sum(terms, self._loss_weights))
        terms = {name: loss.detach() for name, loss in terms.items()}
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self._divergence.watch(norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average.update(self.model)
        # Every rank sees all ranks' codes, and so restarts the same ones.
        codes = [self._group.concatenate(level.flatten()) for level in losses.codes]
        vectors = [self._group.concatenate(level) for level in losses.vectors]
        self._usage.count(codes)
        restarted = restart_unused(
            self.model,
            self._average.model,
            self.optimizer,
            self._usage,
            vectors,
            torch.Generator().manual_seed(step_seed(self._seed, step)),
            allowed=~self._divergence.found,
        )
        return CodecStep(norm, terms, restarted)

    def state(self) -> dict[str, Any]:
        """The state as of now: later steps do not change it."""
        state: dict[str, Any] = on_host(
            {
                "model": self.model.state_dict(),
                "average": self._average.state_dict(),
                "usage": self._usage.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._usage.load_state_dict(state["usage"])
        load_adam(self.optimizer, state["optimizer"])


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The loss: the sum of the terms that have a weight, times that weight."""
    # Not by a tensor of weights, for whose copy to the device the step would wait.
    return torch.stack([terms[name] * weight for name, weight in weights.items()]).sum()


def parameter_groups(model: SNAC) -> list[dict[str, Any]]:
    """The optimizer's groups: the codebooks learn CODEBOOK_RATE times as fast as the rest."""
    codebooks = [quantizer.codebook.weight for quantizer in model.quantizer.quantizers]
    of_codebooks = {id(weight) for weight in codebooks}
    rest = [weight for weight in model.parameters() if id(weight) not in of_codebooks]
    return [
        {"params": rest, "relative_rate": 1.0},
        {"params": codebooks, "relative_rate": CODEBOOK_RATE},
    ]
