"""What a voice sounds like, as a point: the offline measure that needs no download.

Owns `SpectralVoice` (the spectrum and pitch of a clip), what a recording chain does to them
(`disturbed`), and what every judge asks of a clip first (`prepare`). Knows no voice by name and
compares nothing: profiles are `sheen.scoring.speaker_id`'s.

Shapes: n samples.
"""

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torchaudio.functional import resample

Floats = NDArray[np.float64]
Metric = Literal["distance", "cosine"]

MIN_SECONDS = 0.4
"""The shortest clip in which a voice is looked for; the x-vector models need 0.33 s."""

_SILENCE = 1e-4  # peak of full scale: -80 dB, three steps of 16-bit PCM
_MIN_SOUNDING_FRAMES = 10

_RATE = 16_000
_HOP = 160  # 10 ms
_WINDOW = 512  # 32 ms
_BANDS = 32
# Below 100 Hz is the hum of rooms. Recordings at 16 kHz fade out somewhere above 7 kHz, each chain
# in its own way, and what lies higher is missing from them altogether.
_LOWEST_HZ, _HIGHEST_HZ = 100.0, 7000.0
_SOUNDING_DB = 30.0  # quieter than the loudest frame by more than this: a pause
_FLOOR_DB = 50.0  # what lies deeper below the loudest band is a chain's noise, not the voice

_PITCH_WINDOW = 1024  # 64 ms: four periods of the lowest pitch
_PITCH_HOP = 320
_PITCH_HZ = (60, 400)

_DISTURBED_SECONDS = 0.6


def prepare(waveform: NDArray[np.float32], sample_rate: int, target: int) -> NDArray[np.float32]:
    """A clip `[n]` at `target` Hz. ValueError when it is empty, broken, too short or silent."""
    if waveform.ndim != 1:
        raise ValueError(f"the clip has shape {waveform.shape}, expected [n]: one channel")
    if len(waveform) == 0:
        raise ValueError("the clip is empty: it holds 0 samples")
    if not np.isfinite(waveform).all():
        raise ValueError("the clip holds samples that are no numbers (NaN or infinite)")
    seconds = len(waveform) / sample_rate
    if seconds < MIN_SECONDS:
        raise ValueError(
            f"the clip is too short: {seconds:.2f} s, a voice needs {MIN_SECONDS} s at least"
        )
    peak = float(np.abs(waveform).max())
    if peak < _SILENCE:
        raise ValueError(f"the clip is silent: its peak is {peak:.1e} of full scale")
    clip = np.ascontiguousarray(waveform, np.float32)
    if sample_rate != target:
        clip = resample(torch.from_numpy(clip), sample_rate, target).numpy()
    return clip


class SpectralVoice:
    """The offline measure: the long-term spectrum of a clip's sounding frames, and its pitch.

    An embedding is `[33]`: the mean level of 32 mel bands from 100 to 7,000 Hz in dB, less the
    mean over the bands, so that the clip's level drops out; then the median pitch in octaves.
    Pauses do not count: they are the frames 30 dB under the loudest. Clips of 0.6 s and more are
    what it was measured with.
    """

    name = "spectral-1"
    metric: Metric = "distance"

    def embed(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The point `[33]` of a clip; see VoiceJudge."""
        clip = prepare(waveform, sample_rate, _RATE).astype(np.float64)
        frames = sliding_window_view(clip, _WINDOW)[::_HOP]
        power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW + 1)[:-1], axis=1)) ** 2
        bands = power @ _mel_bands().T
        energy = bands.sum(axis=1)
        sounding = energy > energy.max() * 10 ** (-_SOUNDING_DB / 10)
        if sounding.sum() < _MIN_SOUNDING_FRAMES:
            raise ValueError(
                f"the clip is too short: of its {len(clip) / _RATE:.2f} s only "
                f"{sounding.sum() * _HOP / _RATE:.2f} s sound, a voice needs "
                f"{_MIN_SOUNDING_FRAMES * _HOP / _RATE} s at least"
            )
        floor = bands.max() * 10 ** (-_FLOOR_DB / 10)
        levels = 10 * np.log10(np.maximum(bands[sounding], floor)).mean(axis=0)
        return np.append(levels - levels.mean(), _pitch(clip)).astype(np.float32)


def disturbed(clip: NDArray[np.float32], sample_rate: int, seed: int) -> list[NDArray[np.float32]]:
    """A clip `[n]` as other chains would have it: noisy, brighter, narrow-band, cut short."""
    noise = np.random.default_rng(seed).normal(size=len(clip))
    noise *= np.sqrt(np.mean(clip.astype(np.float64) ** 2)) * 10 ** (-15 / 20)  # 15 dB under it
    hertz = np.maximum(np.fft.rfftfreq(len(clip), 1 / sample_rate), _LOWEST_HZ / 2)
    spectrum = np.fft.rfft(clip)
    bright = np.fft.irfft(spectrum * 10 ** (3 / 20 * np.log2(hertz / 1000)), len(clip))
    narrow = np.fft.irfft(spectrum / np.sqrt(1 + (hertz / 4000) ** 16), len(clip))
    # Its loudest stretch, because another could be a pause.
    size = min(len(clip), round(_DISTURBED_SECONDS * sample_rate))
    energy = np.cumsum(np.append(0.0, clip.astype(np.float64) ** 2))
    start = int(np.argmax(energy[size:] - energy[:-size]))
    cut = clip[start : start + size]
    return [piece.astype(np.float32) for piece in (clip + noise, bright, narrow, cut)]


@cache
def _mel_bands() -> Floats:
    """Weights `[32, bins]` of triangular bands, each summing to 1."""
    low, high = 2595 * np.log10(1 + np.array([_LOWEST_HZ, _HIGHEST_HZ]) / 700)
    edges = 700 * (10 ** (np.linspace(low, high, _BANDS + 2) / 2595) - 1)
    hertz = np.fft.rfftfreq(_WINDOW, 1 / _RATE)
    width = np.diff(edges)[:, None]
    rising = (hertz - edges[:-2, None]) / width[:-1]
    falling = (edges[2:, None] - hertz) / width[1:]
    weights = np.maximum(0.0, np.minimum(rising, falling))
    return weights / weights.sum(axis=1, keepdims=True)


def _pitch(clip: Floats) -> float:
    """Median pitch in octaves over 1 Hz, by autocorrelation.

    The median is over the most periodic quarter of the sounding frames and not over those beyond
    a threshold, so that a hoarse or noisy clip has one too.
    """
    frames = sliding_window_view(clip, _PITCH_WINDOW)[::_PITCH_HOP]
    energy = (frames**2).sum(axis=1)
    frames = frames[energy > energy.max() * 10 ** (-_SOUNDING_DB / 10)]
    window = np.hanning(_PITCH_WINDOW)
    taper = _autocorrelation(window[None])[0]
    correlation = _autocorrelation(frames * window) / taper
    correlation /= correlation[:, :1]
    shortest = _RATE // _PITCH_HZ[1]
    likeness = correlation[:, shortest : _RATE // _PITCH_HZ[0] + 1]
    best = likeness.max(axis=1)
    # The first peak that is nearly the highest: two periods correlate as well as one.
    middle = likeness[:, 1:-1]
    peaks = (middle >= likeness[:, :-2]) & (middle >= likeness[:, 2:])
    peaks &= middle > 0.9 * best[:, None]
    lags = np.where(peaks.any(axis=1), peaks.argmax(axis=1) + 1, likeness.argmax(axis=1))
    most = np.argsort(-best, kind="stable")[: max(1, len(best) // 4)]
    return float(np.median(np.log2(_RATE / (lags[most] + shortest))))


def _autocorrelation(frames: Floats) -> Floats:
    power = np.abs(np.fft.rfft(frames, 2 * _PITCH_WINDOW)) ** 2
    return np.fft.irfft(power)[:, :_PITCH_WINDOW]
