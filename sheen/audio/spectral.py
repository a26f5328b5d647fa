"""Spectral distances of speech: the losses that a codec trains on, and the mel distance.

Owns the log-mel spectrogram, the multi-resolution mel and STFT losses, and the mel distance in
decibels that reports give. Knows nothing of codecs, files or plots.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

FLOOR = 1e-5
"""Smallest magnitude before a logarithm: -100 dB, as in the Descript Audio Codec's losses."""

RANGE_DB = 60.0
"""Default depth below a recording's loudest point down to which the losses compare."""

WINDOWS = (2048, 1024, 512, 256, 128)
"""Default windows of the losses, samples. Audio must be longer than half of the first."""

REPORT_WINDOW, REPORT_BANDS = 1024, 80

Norm = Literal["slaney"] | None
"""Norm of the mel filters: equal areas ("slaney"), or equal heights."""


class Spectrum(nn.Module):
    """Magnitudes of one resolution: `window` samples, a hop of a quarter of it, `bands` mels."""

    taper: Tensor
    bank: Tensor

    def __init__(self, sample_rate: int, window: int, bands: int, norm: Norm = "slaney") -> None:
        super().__init__()
        self.window = window
        self.register_buffer("taper", torch.hann_window(window), persistent=False)
        bank = melscale_fbanks(window // 2 + 1, 0.0, sample_rate / 2, bands, sample_rate, norm=norm)
        self.register_buffer("bank", bank, persistent=False)

    def magnitudes(self, audio: Tensor) -> Tensor:
        """`[B, n]` -> `[B, bins, frames]`."""
        spectrum = torch.stft(
            audio, self.window, self.window // 4, window=self.taper, return_complex=True
        )
        # Of re² + im², because abs() has no gradient at zero. The floor is that of the logarithm.
        power = spectrum.real.square() + spectrum.imag.square()
        return power.clamp(min=FLOOR**2).sqrt()

    def mel(self, magnitudes: Tensor) -> Tensor:
        """`[B, bins, frames]` -> `[B, bands, frames]`."""
        return (self.bank.T @ magnitudes).clamp(min=FLOOR)


@dataclass(frozen=True)
class SpectralTerms:
    """Scalars, each a mean over the resolutions."""

    mel: Tensor
    stft: Tensor


class SpectralLoss(nn.Module):
    """Multi-resolution mel and STFT distance of two batches of audio.

    `mel` is the L1 distance of log10 mel magnitudes (Kumar et al. 2023, Descript Audio Codec);
    `stft` is spectral convergence plus the L1 distance of log magnitudes (Yamamoto et al. 2020,
    Parallel WaveGAN). Short windows hear onsets, long ones pitch; bands are few
    enough that no mel filter falls between two bins of the spectrum and is empty.

    Both compare logarithms down to `range_db` below the loudest point of each target: what is
    further down is not heard, and in clean speech it would be half of the loss.
    """

    def __init__(
        self,
        sample_rate: int,
        windows: tuple[int, ...] = WINDOWS,
        range_db: float = RANGE_DB,
    ) -> None:
        super().__init__()
        self.range = 10.0 ** (-range_db / 20.0)
        self.scales = nn.ModuleList(
            [
                Spectrum(sample_rate, window, min(80, window // 8, 4000 * window // sample_rate))
                for window in windows
            ]
        )

    def forward(self, audio: Tensor, target: Tensor) -> SpectralTerms:
        """Losses of `audio` and `target`, `[B, n]` float32; the gradient flows into `audio`."""
        mel = audio.new_zeros(())
        stft = audio.new_zeros(())
        for scale in self.scales:
            assert isinstance(scale, Spectrum)
            with torch.no_grad():
                wanted = scale.magnitudes(target)
                wanted_mel = scale.mel(wanted)
            found = scale.magnitudes(audio)
            mel = mel + self._log_distance(scale.mel(found), wanted_mel)
            convergence = torch.linalg.vector_norm(wanted - found) / torch.linalg.vector_norm(
                wanted
            )
            stft = stft + convergence + self._log_distance(found, wanted)
        return SpectralTerms(mel / len(self.scales), stft / len(self.scales))

    def _log_distance(self, found: Tensor, wanted: Tensor) -> Tensor:
        floor = self.range * wanted.amax((1, 2), keepdim=True)
        return (found.maximum(floor).log10() - wanted.maximum(floor).log10()).abs().mean()


def waveform_distance(audio: Tensor, target: Tensor) -> Tensor:
    """L1 of the samples of `[B, n]`, relative to the target's: the distance that hears phase.

    1 is the distance of silence. Magnitudes alone let the pitch snap to the harmonics of the
    codec's latent rate.
    """
    return (audio - target).abs().sum() / target.abs().sum().clamp(min=FLOOR)


@torch.inference_mode()
def log_mel_db(
    waveform: NDArray[np.float32],
    sample_rate: int,
    window: int = REPORT_WINDOW,
    norm: Norm = "slaney",
) -> NDArray[np.float32]:
    """`[n]` -> `[80, frames]` in dB of full scale; frames of `window` samples, a quarter apart."""
    if len(waveform) < window:
        waveform = np.pad(waveform, (0, window - len(waveform)))
    spectrum = Spectrum(sample_rate, window, REPORT_BANDS, norm)
    magnitudes = spectrum.magnitudes(torch.from_numpy(np.ascontiguousarray(waveform))[None])
    mel: NDArray[np.float32] = (20.0 * spectrum.mel(magnitudes)[0].log10()).numpy()
    return mel


def hz_to_mel(hertz: float) -> float:
    """The HTK mel scale, that of `Spectrum`: band b of B is centered at (b + 1) / (B + 1) of the
    Nyquist frequency's mels."""
    return 2595.0 * math.log10(1.0 + hertz / 700.0)


def mel_distance(
    waveform: NDArray[np.float32], reference: NDArray[np.float32], sample_rate: int
) -> float:
    """Mean absolute difference of two log-mel spectrograms of the same length, in dB.

    Raises ValueError when the lengths differ.
    """
    if len(waveform) != len(reference):
        raise ValueError(
            f"mel distance of {len(waveform)} and {len(reference)} samples: expected equal lengths"
        )
    difference = log_mel_db(waveform, sample_rate) - log_mel_db(reference, sample_rate)
    return float(np.abs(difference).mean())
