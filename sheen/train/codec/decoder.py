"""The decoder of a trained codec under training; encoder and codebooks are frozen.

Owns the decoder's optimizer and DDP wrapping, the average of the weights, and the state that a
resumed run needs of them. Codes made before remain those of the codec, since what makes them never
changes. They are made anew at each step, without gradients: that takes a small part of it, where
codes kept from whole recordings would not be those of a segment. No step waits for the device.
Knows nothing of recordings, logging, evaluation or saving.
"""

from collections.abc import Mapping
from typing import Any

import torch
from snac import SNAC
from torch import Tensor, nn

from sheen.codec.asr_features import AsrFeatureLoss
from sheen.codec.training import (
    Distances,
    WeightAverage,
    compile_stacks,
    quantize,
    use_plain_activations,
)
from sheen.codec.transfer import to_device
from sheen.rng import step_seed
from sheen.train.codec.learner import BETAS, CLIP_NORM, CodecStep, load_adam, weighted_sum
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.divergence import Divergence
from sheen.train.learning.host_copy import on_host


class DecoderLearner:
    """Trains the decoder of `model`; `average` is the codec to save and to evaluate.

    loss_weights: the weight of each distance. asr_features: for the distance of that name; it is
    not part of the state.
    """

    def __init__(
        self,
        model: SNAC,
        group: Collectives,
        *,
        loss_weights: Mapping[str, float],
        asr_features: AsrFeatureLoss | None,
        learning_rate: float,
        compile_layers: bool,
        seed: int,
    ) -> None:
        use_plain_activations(model)
        self.model = model.to(group.device).requires_grad_(False)
        self.model.decoder.requires_grad_(True)
        self._group, self._seed = group, seed
        self._loss_weights, self._peak_rate = loss_weights, learning_rate
        self._average = WeightAverage(self.model)
        self._distances = Distances(int(model.sampling_rate), asr_features=asr_features)
        self._distances.to(group.device)
        if compile_layers:
            compile_stacks(self.model)
        self._decoder = group.data_parallel(self.model.decoder, broadcast_buffers=False)
        self._weights = list(self.model.decoder.parameters())
        self.optimizer = self._adam(self._weights)
        self._divergence = Divergence(group.device)

    @property
    def average(self) -> SNAC:
        return self._average.model

    def update(self, audio: Tensor, step: int, rate: float) -> CodecStep:
        """One step of the optimizer on this rank's `[B, n]`; none from the first norm that is not
        finite on."""
        audio, latents = self._begin(audio, step)
        set_rate(self.optimizer, rate)
        with self._autocast():
            terms = dict(self._distances(self._decoder(latents)[:, 0].float(), audio))
        torch.autograd.backward(weighted_sum(terms, self._loss_weights))
        norm = torch.nn.utils.clip_grad_norm_(self._weights, CLIP_NORM)
        self._divergence.watch(norm, self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average.update(self.model)
        return CodecStep(norm, {name: loss.detach() for name, loss in terms.items()})

    def state(self) -> dict[str, Any]:
        """The state as of now: later steps do not change it."""
        state: dict[str, Any] = on_host(
            {name: part.state_dict() for name, part in self._parts().items()}
        )
        return state

    def load_state(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            if isinstance(part, torch.optim.Optimizer):
                load_adam(part, state[name])
            else:
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "average": self._average, "optimizer": self.optimizer}

    def _begin(self, audio: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The audio `[B, n]` on the device, and the decoder's input `[B, D, T]`.

        From here on the codec's noise is that of this step and rank, whatever ran before.
        """
        torch.manual_seed(step_seed(self._seed, step, self._group.rank))
        audio = to_device(audio, self._group.device)
        # Not in inference mode, whose tensors no backward pass may use; not in bfloat16, which
        # would make other codes.
        with torch.no_grad():
            return audio, quantize(self.model, self.model.encoder(audio[:, None])).latents

    def _autocast(self) -> torch.autocast:
        kind = self._group.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda")

    def _adam(self, weights: list[nn.Parameter]) -> torch.optim.Adam:
        # Fused on CPUs too: what `Divergence` needs.
        return torch.optim.Adam(weights, lr=self._peak_rate, betas=BETAS, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate
