"""The adversary of a codec's decoder: small discriminators, and the losses between the two.

Owns the discriminators' shapes and three losses, each a mean over the discriminators. The shapes
are published ones with fewer channels, so that they cost about as much as a small codec on a CPU:

- `StftDiscriminator`: 2-D convolutions over a complex spectrogram (Défossez et al. 2022, EnCodec,
  there 32 channels and five windows; here 8 channels, and three windows as in DAC);
- `PeriodDiscriminator`: convolutions over every p-th sample (Kong et al. 2020, HiFi-GAN, there 32
  to 1,024 channels; here an eighth).

Losses are those of least squares (Mao et al. 2017), as in HiFi-GAN and DAC, and the distance of the
discriminators' features, relative to the recording's as in EnCodec: its scale then does not follow
theirs. Knows nothing of codecs, optimizers or Ray.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

WINDOWS = (2048, 1024, 512)
"""Samples; hops are a quarter of them."""
STFT_CHANNELS = 8
PERIODS = (2, 3, 5, 7, 11)
"""Primes, so that no two of these discriminators see the same samples."""
PERIOD_CHANNELS = (4, 16, 64, 128, 128)
FLOOR = 1e-5
"""Smallest mean magnitude by which features are divided."""


class Judgement(NamedTuple):
    """One discriminator's output: `score` is near 1 for recordings and near 0 for decoded audio.

    Both are of any shape, with rows of the audio outermost.
    """

    score: Tensor
    features: list[Tensor]

    def detached(self) -> "Judgement":
        return Judgement(self.score.detach(), [feature.detach() for feature in self.features])


class StftDiscriminator(nn.Module):
    """Judges spectrograms with real and imaginary parts as channels, `[B, 2, frames, bins]`."""

    taper: Tensor

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("taper", torch.hann_window(window), persistent=False)
        self.layers = nn.ModuleList([_conv2d(2, channels, (3, 9))])
        for dilation in (1, 2, 4):
            self.layers.append(_conv2d(channels, channels, (3, 9), bin_stride=2, dilation=dilation))
        self.layers.append(_conv2d(channels, channels, (3, 3)))
        self.score = _conv2d(channels, 1, (3, 3))

    def forward(self, audio: Tensor) -> Judgement:
        """The judgement of audio `[B, n]` float32, n larger than half the window."""
        spectrum = torch.stft(
            audio, self.window, self.window // 4, window=self.taper, return_complex=True
        )
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1)
        return _judge(x / self.taper.square().sum().sqrt(), self.layers, self.score, slope=0.2)


class PeriodDiscriminator(nn.Module):
    """Judges every `period`-th sample from each of the first `period` on, `[B * period, 1, m]`."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        for inputs, outputs in zip((1, *channels), channels, strict=False):
            stride = 3 if len(self.layers) < len(channels) - 1 else 1
            self.layers.append(weight_norm(nn.Conv1d(inputs, outputs, 5, stride, padding=2)))
        self.score = weight_norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, audio: Tensor) -> Judgement:
        """The judgement of audio `[B, n]`."""
        padded = F.pad(audio[:, None], (0, -audio.shape[1] % self.period), "reflect")
        x = padded.unflatten(-1, (-1, self.period)).transpose(2, 3).flatten(0, 2)[:, None]
        return _judge(x, self.layers, self.score, slope=0.1)


class Discriminators(nn.Module):
    """All discriminators: one per window and one per period."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            [
                *(StftDiscriminator(window, STFT_CHANNELS) for window in WINDOWS),
                *(PeriodDiscriminator(period, PERIOD_CHANNELS) for period in PERIODS),
            ]
        )

    def forward(self, audio: Tensor) -> list[Judgement]:
        """The judgements of audio `[B, n]` float32, n larger than half the longest window."""
        return [part(audio) for part in self.parts]


def halves(judgements: Sequence[Judgement]) -> tuple[list[Judgement], list[Judgement]]:
    """The judgements of the first and of the second half of a batch."""
    split = [
        (score.chunk(2), [feature.chunk(2) for feature in features])
        for score, features in judgements
    ]
    first, second = (
        [Judgement(score[at], [feature[at] for feature in features]) for score, features in split]
        for at in (0, 1)
    )
    return first, second


def discriminator_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """The discriminators' loss: 0 when they are right and sure, 0.5 when they cannot tell."""
    return _mean(
        [
            (1 - a.score.float()).square().mean() + b.score.float().square().mean()
            for a, b in zip(real, fake, strict=True)
        ]
    )


def adversarial_loss(fake: Sequence[Judgement]) -> Tensor:
    """The decoder's loss: 0 when its audio is classified as recorded, 1 when it never is."""
    return _mean([(1 - part.score.float()).square().mean() for part in fake])


def feature_matching_loss(real: Sequence[Judgement], fake: Sequence[Judgement]) -> Tensor:
    """L1 distance of the features of each layer relative to the mean magnitude of `real`'s."""
    distances = []
    for a, b in zip(real, fake, strict=True):
        for wanted, found in zip(a.features, b.features, strict=True):
            scale = wanted.float().abs().mean().clamp(min=FLOOR)
            distances.append((found.float() - wanted.float()).abs().mean() / scale)
    return _mean(distances)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def _judge(x: Tensor, layers: nn.ModuleList, score: nn.Module, slope: float) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return Judgement(score(x), features)


def _conv2d(
    inputs: int, outputs: int, kernel: tuple[int, int], bin_stride: int = 1, dilation: int = 1
) -> nn.Module:
    """Over frames and bins, dilated over frames; padded to as many frames as there were."""
    layer: nn.Module = weight_norm(
        nn.Conv2d(
            inputs,
            outputs,
            kernel,
            stride=(1, bin_stride),
            padding=(dilation * (kernel[0] // 2), kernel[1] // 2),
            dilation=(dilation, 1),
        )
    )
    return layer
