"""Spectral distances: none for the same audio, more for worse audio, a gradient throughout."""

import warnings

import numpy as np
import pytest
import torch

from sheen.audio.spectral import (
    FLOOR,
    REPORT_BANDS,
    REPORT_WINDOW,
    SpectralLoss,
    Spectrum,
    log_mel_db,
    mel_distance,
    waveform_distance,
)

RATE = 24_000
SIX_DB = 20 * np.log10(2)


def chord(samples: int, rate: int = RATE) -> np.ndarray:
    """Two harmonic tones that swell, over noise: every band is far above the floor."""
    seconds = np.arange(samples) / rate
    tones = sum(np.sin(2 * np.pi * 110 * k * seconds) / k for k in range(1, 40))
    noise = np.random.default_rng(0).normal(size=samples)
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * seconds)
    return (0.1 * swell * tones + 0.02 * noise).astype(np.float32)


def noise(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=samples).astype(np.float32)


@pytest.fixture(scope="module")
def loss() -> SpectralLoss:
    return SpectralLoss(RATE)


def batch(*waveforms: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(waveforms))


def test_the_same_audio_has_no_distance(loss: SpectralLoss) -> None:
    audio = batch(chord(6144), noise(6144, 1))
    terms = loss(audio, audio.clone())
    assert float(terms.mel) == 0.0
    assert float(terms.stft) == 0.0


def test_more_noise_is_more_distance(loss: SpectralLoss) -> None:
    clean, added = chord(6144), noise(6144, 1)
    levels = [1e-4, 1e-3, 1e-2, 1e-1]
    terms = [loss(batch(clean + level * added), batch(clean)) for level in levels]
    for found in ([float(t.mel) for t in terms], [float(t.stft) for t in terms]):
        assert found == sorted(found)
        assert found[0] > 0.0
        assert found[-1] > 5 * found[0]
    decibels = [mel_distance(clean + level * added, clean, RATE) for level in levels]
    assert decibels == sorted(decibels)


def test_the_loss_of_a_batch_of_equals_is_that_of_one(loss: SpectralLoss) -> None:
    clean, noisy = chord(6144), chord(6144) + 0.01 * noise(6144, 1)
    one, four = loss(batch(noisy), batch(clean)), loss(batch(*[noisy] * 4), batch(*[clean] * 4))
    torch.testing.assert_close(four.mel, one.mel)
    torch.testing.assert_close(four.stft, one.stft)


@pytest.mark.parametrize("target", ["silence", "itself", "speech-like"])
@pytest.mark.parametrize("found", ["silence", "speech-like"])
def test_loss_and_gradient_are_finite(loss: SpectralLoss, found: str, target: str) -> None:
    """Silence has neither a logarithm nor a norm to divide by, and a square root no slope at 0."""
    audio = torch.zeros(2, 2048) if found == "silence" else batch(chord(2048), noise(2048, 1))
    wanted = {
        "silence": torch.zeros(2, 2048),
        "itself": audio.clone(),
        "speech-like": batch(chord(2048), chord(2048) / 2),
    }[target]
    audio.requires_grad_()
    terms = loss(audio, wanted)
    torch.autograd.backward(15 * terms.mel + terms.stft)
    assert torch.isfinite(terms.mel)
    assert torch.isfinite(terms.stft)
    assert audio.grad is not None
    assert torch.isfinite(audio.grad).all()


def test_the_gradient_leads_to_the_target(loss: SpectralLoss) -> None:
    target = batch(chord(4096))
    audio = (target + 0.05 * batch(noise(4096, 1))).requires_grad_()
    optimizer = torch.optim.Adam([audio], lr=2e-3)
    values = []
    for _ in range(15):
        terms = loss(audio, target)
        total = terms.mel + terms.stft
        values.append(total.item())
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
    assert values[-1] < 0.9 * values[0]


def test_the_target_gets_no_gradient(loss: SpectralLoss) -> None:
    target = batch(chord(4096)).requires_grad_()
    terms = loss(batch(noise(4096, 1)).requires_grad_(), target)
    torch.autograd.backward(terms.mel + terms.stft)
    assert target.grad is None


@pytest.mark.parametrize("rate", [16_000, 24_000, 32_000, 44_100, 48_000])
def test_no_mel_filter_is_empty(rate: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchaudio warns of one
        scales = [*SpectralLoss(rate).scales, Spectrum(rate, REPORT_WINDOW, REPORT_BANDS)]
    for scale in scales:
        assert isinstance(scale, Spectrum)
        assert (scale.bank.max(dim=0).values > 0).all(), scale.window


def test_the_published_rates_keep_their_bands() -> None:
    """What a codec is trained by must not move under a run that resumes."""
    for rate in (24_000, 32_000):
        bands = [scale.bank.shape[1] for scale in SpectralLoss(rate).scales]
        assert bands == [80, 80, 64, 32, 16]


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_half_the_level_is_six_decibels(rate: int) -> None:
    whole = chord(rate // 2, rate)
    assert log_mel_db(whole / 2, rate).min() > 20 * np.log10(FLOOR) + 1, "above the floor"
    assert mel_distance(whole / 2, whole, rate) == pytest.approx(SIX_DB, abs=0.01)
    assert mel_distance(whole, whole / 2, rate) == pytest.approx(SIX_DB, abs=0.01)


def test_no_level_of_a_spectrum_is_below_the_floor() -> None:
    silence = np.zeros(4096, np.float32)
    assert log_mel_db(silence, RATE) == pytest.approx(-100.0)
    assert mel_distance(silence, 1e-7 * noise(4096, 0), RATE) == pytest.approx(0.0, abs=1e-4)


def test_a_tone_is_in_its_band() -> None:
    """Bands rise in frequency, frames follow time."""
    seconds = np.arange(RATE) / RATE
    low, high = np.sin(2 * np.pi * 300 * seconds), np.sin(2 * np.pi * 6000 * seconds)
    first_low = np.where(seconds < 0.5, low, high).astype(np.float32)
    mel = log_mel_db(first_low, RATE)
    assert mel.shape == (REPORT_BANDS, 1 + RATE // 256)
    loudest = mel.argmax(axis=0)
    assert (loudest[4:40] == loudest[4]).all()
    assert (loudest[-40:-4] == loudest[-4]).all()
    assert loudest[-4] > loudest[4] + 20


@pytest.mark.parametrize("samples", [1, 2, 511, 512, 513, 1023, 1024, 1025])
def test_short_clips_are_measured_too(samples: int) -> None:
    clip = chord(2048)[:samples]
    assert np.isfinite(log_mel_db(clip, RATE)).all()
    assert mel_distance(clip, clip, RATE) == 0.0
    assert mel_distance(clip + 0.1 * noise(samples, 1), clip, RATE) > 0.0


def test_a_strided_view_is_measured_as_its_copy() -> None:
    wave = chord(8192)
    strided = np.repeat(wave, 2)[::2]
    np.testing.assert_array_equal(log_mel_db(strided, RATE), log_mel_db(wave, RATE))
    backwards = wave[::-1]
    np.testing.assert_array_equal(log_mel_db(backwards, RATE), log_mel_db(backwards.copy(), RATE))


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="mel distance of 4096 and 4095 samples"):
        mel_distance(chord(4096), chord(4096)[:-1], RATE)


def test_what_is_far_below_the_loudest_point_is_not_compared() -> None:
    """A faint hiss in a second of its own, after a loud one: heard at 90 dB of range, not at 60."""
    loud = np.concatenate([chord(24_576), np.zeros(24_576, np.float32)])
    hiss = np.concatenate([np.zeros(24_576, np.float32), 1e-5 * noise(24_576, 1)])
    found, target = batch(loud + hiss), batch(loud)
    near = SpectralLoss(RATE, range_db=60.0)(found, target)
    far = SpectralLoss(RATE, range_db=120.0)(found, target)
    assert float(near.mel) < 0.01 * float(far.mel)
    # Louder by 60 dB both, it is the same: the range is the target's own.
    louder = SpectralLoss(RATE, range_db=60.0)(1000 * found, 1000 * target)
    assert float(louder.mel) == pytest.approx(float(near.mel), rel=1e-2, abs=1e-6)


def test_samples_hear_phase() -> None:
    audio = batch(chord(6144), noise(6144, 1))
    assert float(waveform_distance(audio, audio)) == 0.0
    assert float(waveform_distance(torch.zeros_like(audio), audio)) == pytest.approx(1.0)
    assert float(waveform_distance(-audio, audio)) == pytest.approx(2.0)
    assert bool(torch.isfinite(waveform_distance(audio, torch.zeros_like(audio))))
