"""The decoder of a trained codec under training against discriminators as well.

Owns the discriminators with their optimizer and DDP wrapping, and the balance of their gradients
with the distances'. Discriminators and decoder are both updated by gradients of the same weights,
so that neither is in a step where the other's gradient is not finite. Everything else is
`DecoderLearner`'s.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from snac import SNAC
from torch import Tensor

from sheen.codec.discriminators import (
    Discriminators,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    halves,
)
from sheen.train.codec.decoder import DecoderLearner, set_rate
from sheen.train.codec.learner import CLIP_NORM, CodecStep, weighted_sum
from sheen.train.learning.collectives import Collectives

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


class AdversarialLearner(DecoderLearner):
    """As DecoderLearner, whose other arguments it takes, with discriminators.

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
            heard = decoded.detach().requires_grad_()
            seen = self._window(audio.shape[1])
            real, fake = audio[:, seen], heard[:, seen]
            of_real, of_fake = halves(
                self._parallel_discriminators(torch.cat([real, fake.detach()]))
            )
            terms = {DISCRIMINATOR: discriminator_loss(of_real, of_fake)}
        torch.autograd.backward(terms[DISCRIMINATOR])
        with self._autocast():
            # Not through DDP, which would wait for gradients of the discriminators.
            of_fake = self.discriminators(fake)
            of_real = [part.detached() for part in of_real]
            terms |= self._distances(heard, audio)
            terms["adversarial"] = adversarial_loss(of_fake)
            terms["feature_matching"] = feature_matching_loss(of_real, of_fake)
        torch.autograd.backward(decoded, self._gradient(terms, heard), inputs=self._weights)
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

    def _gradient(self, terms: Mapping[str, Tensor], heard: Tensor) -> Tensor:
        """The gradient of the decoder's losses with respect to its audio `[B, n]`."""
        parts = [weighted_sum(terms, self._loss_weights), *(terms[name] for name in ADVERSARIES)]
        # The adversarial losses share a pass through the discriminators.
        first, *others = (torch.autograd.grad(part, heard, retain_graph=True)[0] for part in parts)
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
