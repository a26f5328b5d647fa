"""The decoder of a trained codec under training; encoder and codebooks are frozen.

Owns the decoder's optimizer and DDP wrapping, the average of the weights, and the state that a
resumed run needs of them; in the second stage of training also the discriminators, whose gradients
it balances with the distances'. Codes made before remain those of the codec, since what makes them
never changes. They are made anew at each step, without gradients: that takes a small part of it,
where codes kept from whole recordings would not be those of a segment. No step waits for the
device. Knows nothing of recordings, logging, evaluation or saving.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from snac import SNAC
from torch import Tensor, nn

from sheen.codec.asr_features import AsrFeatureLoss
from sheen.codec.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    halves,
)
from sheen.codec.training import (
    Distances,
    WeightAverage,
    compile_stacks,
    quantize,
    use_plain_activations,
)
from sheen.codec.transfer import to_device
from sheen.rng import step_seed
from sheen.train.codec.learner import BETAS, CLIP_NORM, CodecStep, weighted_sum
from sheen.train.learning.collectives import Collectives
from sheen.train.learning.optimizers import Divergence, load_adam, on_host, set_rate

DISCRIMINATOR = "discriminator"
"""Name of the loss that only the discriminators minimize."""
DISCRIMINATOR_RATE = 0.5
"""Learning rate of the discriminators, relative to the decoder's; at 1 they become too strong."""
WINDOW_SECONDS = 1 / 3
"""Part of each segment that the discriminators get, as in HiFi-GAN and DAC: more would cost much
and help little, whereas the other losses gain from long segments."""
ADVERSARIES = ("adversarial", "feature_matching")
"""Names of the losses through the discriminators that the decoder minimizes."""
LARGEST_SCALE = 1e4
"""Largest factor of a gradient, as in VQGAN: untrained discriminators give next to none."""


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


class AdversarialLearner(DecoderLearner):
    """As DecoderLearner, whose other arguments it takes, with discriminators.

    Discriminators and decoder are both updated by gradients of the same weights, so that neither is
    in a step where the other's gradient is not finite.

    adversarial_weight: see `balanced`. warmup_steps: of the decoder; the discriminators, which
    start at random, have the peak rate from the first step.
    """

    def __init__(
        self,
        model: SNAC,
        group: Collectives,
        *,
        adversarial_weight: float,
        warmup_steps: int,
        seed: int,
        **settings: Any,
    ) -> None:
        super().__init__(model, group, seed=seed, **settings)
        self._adversarial_weight, self._warmup_steps = adversarial_weight, warmup_steps
        torch.manual_seed(seed)
        self.discriminators = Discriminators().to(group.device)
        self._parallel_discriminators = group.data_parallel(
            self.discriminators, broadcast_buffers=False
        )
        self.discriminator_optimizer = self._adam(list(self.discriminators.parameters()))

    def update(self, audio: Tensor, step: int, rate: float) -> CodecStep:
        """One step of both optimizers on this rank's `[B, n]`.

        The norm is the decoder's, or one that is not finite; from then on neither optimizer steps.
        """
        audio, latents = self._begin(audio, step)
        discriminator_rate = self._peak_rate if step < self._warmup_steps else rate
        set_rate(self.optimizer, rate)
        set_rate(self.discriminator_optimizer, DISCRIMINATOR_RATE * discriminator_rate)
        with self._autocast():
            decoded = self._decoder(latents)[:, 0].float()
            # Losses end here, so that their gradients can be told apart.
            output = decoded.detach().requires_grad_()
            seen = self._window(audio.shape[1])
            real, fake = audio[:, seen], output[:, seen]
            of_real, of_fake = halves(
                self._parallel_discriminators(torch.cat([real, fake.detach()]))
            )
            terms = {DISCRIMINATOR: discriminator_loss(of_real, of_fake)}
        torch.autograd.backward(terms[DISCRIMINATOR])
        with self._autocast():
            # Not through DDP, which would wait for gradients of the discriminators.
            of_fake = self.discriminators(fake)
            of_real = [part.detached() for part in of_real]
            terms |= self._distances(output, audio)
            terms["adversarial"] = adversarial_loss(of_fake)
            terms["feature_matching"] = feature_matching_loss(of_real, of_fake)
        torch.autograd.backward(decoded, self._gradient(terms, output), inputs=self._weights)
        losses = {name: loss.detach() for name, loss in terms.items()}
        norm, other = (
            torch.nn.utils.clip_grad_norm_(part.parameters(), CLIP_NORM)
            for part in (self.model.decoder, self.discriminators)
        )
        norm = torch.where(other.isfinite(), norm, other)
        optimizers = self.optimizer, self.discriminator_optimizer
        self._divergence.watch(norm, *optimizers)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._average.update(self.model)
        return CodecStep(norm, losses)

    def _parts(self) -> dict[str, Any]:
        return super()._parts() | {
            "discriminators": self.discriminators,
            "discriminator_optimizer": self.discriminator_optimizer,
        }

    def _gradient(self, terms: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The gradient of the decoder's losses with respect to its audio `[B, n]`."""
        parts = [weighted_sum(terms, self._loss_weights), *(terms[name] for name in ADVERSARIES)]
        # The adversarial losses share a pass through the discriminators.
        first, *others = (torch.autograd.grad(part, output, retain_graph=True)[0] for part in parts)
        return balanced(first, others, self._adversarial_weight, self._group)

    def _window(self, samples: int) -> slice:
        """A window of a segment, elsewhere at each step."""
        length = min(samples, round(WINDOW_SECONDS * int(self.model.sampling_rate)))
        start = int(torch.randint(samples - length + 1, ()))
        return slice(start, start + length)


def balanced(
    gradient: Tensor, others: Sequence[Tensor], weight: float, group: Collectives
) -> Tensor:
    """The gradient plus each of the others, scaled to `weight` times its norm.

    How strongly discriminators answer follows their own weights, by orders of magnitude, so no
    constant factor fits a whole run. Scaled as by EnCodec's balancer (Défossez et al. 2022), but by
    the norms of this step alone, as in VQGAN (Esser et al. 2021). Norms are those over all ranks.
    """
    squares = torch.stack([part.square().sum() for part in (gradient, *others)])
    own, *of_others = group.sum_on_device(squares).sqrt().double()
    total = gradient.clone()
    for part, norm in zip(others, of_others, strict=True):
        scale = (weight * own / norm).clamp(max=LARGEST_SCALE)
        total += part * torch.where(norm == 0, 0.0, scale).to(part.dtype)
    return total
