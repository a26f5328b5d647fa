"""Sound quality of a segment: DNSMOS, SNR, bandwidth, clipping, loudness, overlapping speech.

Owns the measures, each a number with a unit or None if it cannot be measured, and their limits. All
limits except that of overlap, which is measured only with `--overlap`, are off by default: the
report's histograms show how much they would reject. The networks are those of `sheen.scoring.mos`
and `overlap`; speech is found by `sheen.prepare.cutting.vad`. Reads no files.

Shapes: n samples, spans in seconds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sheen.audio.effects import loudness_lufs
from sheen.audio.samples import NO_SAMPLES, Samples, clipped_per_second
from sheen.prepare.rejections.reasons import Fault
from sheen.scoring.mos import Dnsmos
from sheen.scoring.overlap import OverlapDetector
from sheen.scoring.packaged import UnscorableError

DNSMOS_SECONDS = 9.01
"""The network's window. One window from the middle of a segment is scored: each takes 0.1 to 0.4
CPU seconds."""
DNSMOS_DB = -23.0
"""RMS level of the scored copy, dB of full scale: at 30 dB less the score is a point lower."""
EDGE_S = 0.05
"""Silence next to speech that does not count as a pause: it contains breath and reverberation."""
SHORTEST_PAUSE_S = 0.1
"""Least length of all pauses together for measuring noise."""
WORST_SNR_DB, BEST_SNR_DB = -20.0, 100.0
"""Bounds of the ratio, which is infinite for digital silence."""
BANDWIDTH_DB = 50.0
"""The bandwidth ends where the mean spectrum falls this far below its maximum, as in NeMo's
EstimateBandwidth, which was used for Hi-Fi TTS 2."""
UPSAMPLED = 0.8
"""With a bandwidth below this share of half the sample rate, speech was recorded at a lower rate:
16 kHz speech at 24 kHz has 0.74."""

MAX_OVERLAP = 0.05
"""Measured on 36 clips: none with a single voice had any overlap; all with two voices mixed at the
same level had at least 0.38; with a second voice 10 dB softer, one in six had any, 20 dB softer
none."""

_WINDOW = 512
_BLACKMAN_HARRIS = (0.35875, 0.48829, 0.14128, 0.01168)
_TINY = 1e-12
Span = tuple[float, float]


@dataclass(frozen=True)
class Quality:
    """None: not measured, or not measurable."""

    dnsmos: float | None
    """Overall, 1 to 5 (P.835's OVRL)."""
    snr_db: float | None
    """Speech over the noise in the pauses near it."""
    bandwidth_hz: float | None
    """The highest frequency of the speech; up to a kilohertz too high."""
    upsampled: bool | None
    """Whether the speech was recorded at a lower sample rate."""
    clipped_per_second: float
    """Runs of samples at the same peak level, per second."""
    loudness_lufs: float | None
    """Integrated, BS.1770."""
    overlap: float | None = None
    """Share of the speech in which two speak at once."""


@dataclass(frozen=True)
class QualityLimits:
    """None: no limit. A measure that is None passes every limit."""

    min_dnsmos: float | None = None
    min_snr_db: float | None = None
    min_bandwidth_hz: float | None = None
    max_clipped_per_second: float | None = None
    min_loudness_lufs: float | None = None
    max_overlap: float = MAX_OVERLAP


def measure(
    samples: Samples,
    sample_rate: int,
    speech: Sequence[Span],
    pauses: Samples = NO_SAMPLES,
    *,
    peak: float | None = None,
    dnsmos: Dnsmos | None = None,
    overlap: OverlapDetector | None = None,
) -> Quality:
    """The measures of a segment `[n]` whose speech is at `speech`.

    `pauses` `[m]`: samples without speech from within it and near it, see `between`. `peak`: the
    largest sample of the whole recording, None for the segment's. `dnsmos`, `overlap`: None
    skips it.
    """
    spoken = _within(samples, sample_rate, speech)
    bandwidth = bandwidth_hz(spoken, sample_rate, pauses)
    return Quality(
        dnsmos=None if dnsmos is None else overall_mos(dnsmos, samples, sample_rate),
        snr_db=snr_db(spoken, pauses, sample_rate),
        bandwidth_hz=bandwidth,
        upsampled=None if bandwidth is None else bandwidth < UPSAMPLED * sample_rate / 2,
        clipped_per_second=clipped_per_second(samples, sample_rate, peak),
        loudness_lufs=loudness_lufs(samples, sample_rate),
        overlap=None if overlap is None else overlap_share(overlap, samples, sample_rate),
    )


def quality_fault(quality: Quality, limits: QualityLimits) -> Fault | None:
    """The first limit that a segment exceeds: a reason and the measured value."""
    least = (
        ("low DNSMOS", quality.dnsmos, limits.min_dnsmos, ""),
        ("noisy", quality.snr_db, limits.min_snr_db, " dB"),
        ("narrow bandwidth", quality.bandwidth_hz, limits.min_bandwidth_hz, " Hz"),
        ("too soft", quality.loudness_lufs, limits.min_loudness_lufs, " LUFS"),
    )
    for reason, value, limit, unit in least:
        if value is not None and limit is not None and value < limit:
            return reason, f"{round(value, 2):g}{unit}, the minimum is {limit:g}{unit}"
    most = limits.max_clipped_per_second
    if most is not None and quality.clipped_per_second > most:
        return (
            "clipped",
            f"{quality.clipped_per_second:.2f} clipped places per second, the maximum is {most:g}",
        )
    if quality.overlap is not None and quality.overlap > limits.max_overlap:
        return (
            "two voices at once",
            f"in {quality.overlap:.0%} of the speech, the maximum is {limits.max_overlap:.0%}",
        )
    return None


def between(samples: Samples, sample_rate: int, speech: Sequence[Span]) -> Samples:
    """The samples `[m]` outside speech, without EDGE_S next to it."""
    kept = np.ones(len(samples), bool)
    for start, end in speech:
        first = max(0, round((start - EDGE_S) * sample_rate))
        kept[first : round((end + EDGE_S) * sample_rate)] = False
    return samples[kept]


def overall_mos(dnsmos: Dnsmos, samples: Samples, sample_rate: int) -> float | None:
    """DNSMOS OVRL of a segment's middle, at a fixed level; None if it is silent or too short."""
    taken = min(len(samples), round(DNSMOS_SECONDS * sample_rate))
    first = (len(samples) - taken) // 2
    clip = samples[first : first + taken]
    rms = math.sqrt(float(np.square(clip, dtype=np.float64).mean())) if taken else 0.0
    if rms < _TINY:
        return None
    gain = min(10 ** (DNSMOS_DB / 20) / rms, 1.0 / float(np.abs(clip).max()))
    try:
        return dnsmos.score(clip * np.float32(gain), sample_rate).ovrl
    except UnscorableError:
        return None


def overlap_share(detector: OverlapDetector, samples: Samples, sample_rate: int) -> float | None:
    """Share of overlapping speech in a segment `[n]`; None if it is silent or too short."""
    try:
        return detector.share(samples, sample_rate)
    except UnscorableError:
        return None


def snr_db(spoken: Samples, pauses: Samples, sample_rate: int) -> float | None:
    """Ratio of speech `[n]` to the noise in pauses `[m]`, dB; None if either is too short."""
    if not len(spoken) or len(pauses) < SHORTEST_PAUSE_S * sample_rate:
        return None
    both = float(np.square(spoken, dtype=np.float64).mean())
    noise = float(np.square(pauses, dtype=np.float64).mean())
    ratio = max(both - noise, _TINY) / max(noise, _TINY)
    return float(np.clip(10 * math.log10(ratio), WORST_SNR_DB, BEST_SNR_DB))


def bandwidth_hz(spoken: Samples, sample_rate: int, pauses: Samples = NO_SAMPLES) -> float | None:
    """The highest frequency within BANDWIDTH_DB of the maximum, after subtracting the noise of the
    pauses.

    None for speech shorter than a window, or not louder than its pauses.
    """
    power = _mean_spectrum(spoken)
    if power is None:
        return None
    noise = _mean_spectrum(pauses)
    if noise is not None:
        # Noise varies: a bin must clearly exceed it.
        power = np.where(power > 2 * noise, power - noise, 0.0)
    if power.max() <= _TINY:
        return None
    audible = np.flatnonzero(power >= power.max() * 10 ** (-BANDWIDTH_DB / 10))
    return float(audible[-1] * sample_rate / _WINDOW)


def _mean_spectrum(samples: Samples) -> NDArray[np.float64] | None:
    """Mean power of each of 257 bins; frames of 512 samples overlap by half."""
    if len(samples) < _WINDOW:
        return None
    phase = 2 * np.pi * np.arange(_WINDOW) / _WINDOW
    window = sum(
        (-1) ** order * factor * np.cos(order * phase)
        for order, factor in enumerate(_BLACKMAN_HARRIS)
    )
    frames = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[:: _WINDOW // 2]
    spectra = np.fft.rfft(frames * np.asarray(window, np.float32), axis=1)
    power: NDArray[np.float64] = (np.abs(spectra) ** 2).mean(axis=0, dtype=np.float64)
    return power


def _within(samples: Samples, sample_rate: int, spans: Sequence[Span]) -> Samples:
    parts = [
        samples[max(0, round(start * sample_rate)) : round(end * sample_rate)]
        for start, end in spans
    ]
    return np.concatenate([NO_SAMPLES, *parts])
