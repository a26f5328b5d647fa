"""Discriminators of decoded audio: what they see, and the losses between them and a decoder."""

import pytest
import torch
from torch import Tensor, nn

from sheen.codec.discriminators import (
    PERIODS,
    WINDOWS,
    Discriminators,
    Judgement,
    PeriodDiscriminator,
    StftDiscriminator,
    adversarial_loss,
    discriminator_loss,
    feature_matching_loss,
    halves,
)

SAMPLES = 4096


@pytest.fixture
def discriminators() -> Discriminators:
    torch.manual_seed(0)
    return Discriminators()


def noise(rows: int = 2, seed: int = 1) -> Tensor:
    return 0.1 * torch.randn(rows, SAMPLES, generator=torch.Generator().manual_seed(seed))


def tones(rows: int = 2) -> Tensor:
    pitches = 200.0 * torch.arange(1, rows + 1)[:, None]
    return 0.1 * torch.sin(2 * torch.pi * pitches * torch.arange(SAMPLES) / 24_000)


def scored(*scores: float) -> list[Judgement]:
    return [Judgement(torch.full((2, 3), score), [torch.ones(2, 3)]) for score in scores]


def test_there_is_one_discriminator_per_window_and_per_period(
    discriminators: Discriminators,
) -> None:
    parts = list(discriminators.parts)
    windows = [part.window for part in parts if isinstance(part, StftDiscriminator)]
    periods = [part.period for part in parts if isinstance(part, PeriodDiscriminator)]
    assert (windows, periods) == (list(WINDOWS), list(PERIODS))
    assert len(discriminators(noise())) == len(parts)
    assert sum(weight.numel() for weight in discriminators.parameters()) < 1e6


def test_halves_of_a_batch_are_judged_as_alone(discriminators: Discriminators) -> None:
    real, fake = tones(), noise()
    both = halves(discriminators(torch.cat([real, fake])))
    for found, audio in zip(both, (real, fake), strict=True):
        for part, alone in zip(found, discriminators(audio), strict=True):
            torch.testing.assert_close(part, alone)


@pytest.mark.parametrize("period", PERIODS)
def test_a_period_discriminator_compares_every_pth_sample(period: int) -> None:
    torch.manual_seed(0)
    discriminator = PeriodDiscriminator(period, (4, 8))
    audio = noise(rows=1)
    changed = audio.clone()
    changed[0, 1000] += 1.0
    moved = (discriminator(changed).score != discriminator(audio).score).flatten(1).any(dim=1)
    assert moved.tolist() == [phase == 1000 % period for phase in range(period)]


def test_every_parameter_learns_from_one_batch(discriminators: Discriminators) -> None:
    """So that data-parallel training waits for none in vain."""
    real, fake = halves(discriminators(torch.cat([tones(), noise()])))
    torch.autograd.backward(discriminator_loss(real, fake))
    for name, weight in discriminators.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_the_losses_are_those_of_least_squares() -> None:
    sure = scored(1.0, 1.0), scored(0.0, 0.0)
    unsure = scored(0.5, 0.5), scored(0.5, 0.5)
    half = scored(1.0, 0.0), scored(0.0, 0.0)
    assert [float(discriminator_loss(*case)) for case in (sure, unsure, half)] == [0.0, 0.5, 0.5]
    assert float(adversarial_loss(scored(1.0, 1.0))) == 0.0
    assert float(adversarial_loss(scored(0.0, 0.0))) == 1.0
    assert float(adversarial_loss(scored(1.0, 0.0))) == 0.5


def test_features_of_equal_audio_match(discriminators: Discriminators) -> None:
    real, same, other = (discriminators(audio) for audio in (tones(), tones(), noise()))
    assert float(feature_matching_loss(real, same).detach()) == 0.0
    assert float(feature_matching_loss(real, other).detach()) > 0.1


def test_the_distance_of_features_has_no_scale() -> None:
    def judged(*values: float) -> list[Judgement]:
        return [Judgement(torch.zeros(1), [torch.tensor([value, -value])]) for value in values]

    near = feature_matching_loss(judged(1.0, 100.0), judged(1.5, 150.0))
    assert float(near) == pytest.approx(0.5)


def test_silence_has_losses_and_gradients_that_are_numbers(discriminators: Discriminators) -> None:
    audio = torch.zeros(2, SAMPLES, requires_grad=True)
    real, fake = halves(discriminators(torch.cat([audio.detach(), audio])))
    loss = feature_matching_loss(real, fake) + adversarial_loss(fake)
    torch.autograd.backward(loss)
    assert torch.isfinite(loss)
    assert audio.grad is not None
    assert torch.isfinite(audio.grad).all()


@pytest.mark.slow
def test_discriminators_learn_to_tell_decoded_audio_from_recordings(
    discriminators: Discriminators,
) -> None:
    optimizer = torch.optim.Adam(discriminators.parameters(), lr=1e-3, betas=(0.8, 0.99))
    real, fake = tones(), noise()
    losses = []
    for _ in range(20):
        loss = discriminator_loss(*halves(discriminators(torch.cat([real, fake]))))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.slow
def test_audio_that_follows_the_gradient_of_the_losses_passes_better(
    discriminators: Discriminators,
) -> None:
    """A decoder that follows the gradient of its losses passes better."""
    start = noise()
    audio = nn.Parameter(start.clone())
    optimizer = torch.optim.Adam([audio], lr=5e-3)
    real = [part.detached() for part in discriminators(tones())]

    def loss() -> Tensor:
        fake = discriminators(audio)
        return adversarial_loss(fake) + 2 * feature_matching_loss(real, fake)

    before = float(loss().detach())
    for _ in range(8):
        optimizer.zero_grad()
        torch.autograd.backward(loss(), inputs=[audio])
        optimizer.step()
    assert all(weight.grad is None for weight in discriminators.parameters())
    assert float(loss().detach()) < 0.98 * before
    assert (audio.detach() != start).all(), "every sample is heard"
