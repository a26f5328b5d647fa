"""Measures of segments: what they find, and that what is not there is not measured."""

import json
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from helpers.example import DEMO, RECORDINGS
from sheen.audio.io import decode_audio, resampled
from sheen.audio.samples import NO_SAMPLES
from sheen.prepare.rejections.quality import (
    Quality,
    QualityLimits,
    bandwidth_hz,
    between,
    clipped_per_second,
    measure,
    overall_mos,
    quality_fault,
    snr_db,
)
from sheen.scoring.mos import Dnsmos

RATE = 24_000
Samples = NDArray[np.float32]


@cache
def voice() -> Samples:
    rows = [json.loads(line) for line in RECORDINGS.read_text("utf-8").splitlines()]
    row = max(rows[:20], key=lambda row: row["seconds"])
    return decode_audio((DEMO / row["audio"]).read_bytes(), RATE)


def noise(db: float, seconds: float = 2.0, seed: int = 0) -> Samples:
    """White, of so much RMS below full scale."""
    drawn = np.random.default_rng(seed).standard_normal(round(seconds * RATE))
    return (10 ** (db / 20) * drawn).astype(np.float32)


def through(rate: int) -> Samples:
    """The voice as a recorder of that rate leaves it, at RATE."""
    return resampled(resampled(voice(), RATE, rate), rate, RATE)


@pytest.mark.parametrize(("rate", "least", "most"), [(8_000, 3_500, 5_000), (16_000, 7_000, 9_500)])
def test_the_rate_that_speech_was_recorded_at_is_found(rate: int, least: int, most: int) -> None:
    narrow = bandwidth_hz(through(rate), RATE)
    assert narrow is not None
    assert least < narrow < most
    whole = bandwidth_hz(voice(), RATE)
    assert whole is not None
    assert whole > narrow + 1000
    spans = [(0.0, len(voice()) / RATE)]
    assert measure(through(rate), RATE, spans).upsampled
    assert not measure(voice(), RATE, spans).upsampled


def test_noise_does_not_hide_that_speech_was_upsampled() -> None:
    noisy = through(8_000) + noise(-50, len(voice()) / RATE)
    hidden = bandwidth_hz(noisy, RATE)
    found = bandwidth_hz(noisy, RATE, noise(-50, seed=1))
    assert hidden is not None
    assert found is not None
    assert hidden > 10_000 > 6_000 > found


def test_the_ratio_of_signal_and_noise_is_that_of_their_powers() -> None:
    speech = noise(-20, 3.0, seed=3) + noise(-40, 3.0, seed=4)
    ratio = snr_db(speech, noise(-40, 0.5, seed=5), RATE)
    assert ratio == pytest.approx(20, abs=0.5)
    assert snr_db(speech, noise(-40, 0.05), RATE) is None
    assert snr_db(NO_SAMPLES, noise(-40), RATE) is None
    assert snr_db(speech, np.zeros(RATE, np.float32), RATE) == pytest.approx(100)
    assert snr_db(noise(-40), noise(-30), RATE) == pytest.approx(-20)


def test_pauses_are_what_is_between_speech_but_for_its_edges() -> None:
    samples = np.arange(10 * RATE, dtype=np.float32)
    got = between(samples, RATE, [(1.0, 4.0), (5.0, 12.0)])
    kept = np.concatenate([samples[: round(0.95 * RATE)], samples[round(4.05 * RATE) :]])
    np.testing.assert_array_equal(got, kept[kept < round(4.95 * RATE)])
    assert len(between(samples, RATE, [(0.0, 10.0)])) == 0


def test_what_was_cut_off_is_counted_at_whatever_level() -> None:
    loud = voice() / np.abs(voice()).max()
    assert clipped_per_second(loud, RATE) == 0
    clipped = np.clip(loud, -0.4, 0.4)
    found = clipped_per_second(clipped, RATE)
    assert found > 1
    assert clipped_per_second(clipped * np.float32(0.7), RATE) == pytest.approx(found)
    # Softer than the recording's loudest place, where that is known.
    assert clipped_per_second(clipped, RATE, peak=0.9) == 0
    crests = (0.5 * np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)).astype(np.float32)
    assert clipped_per_second(np.rint(crests * 32767).astype(np.float32) / 32767, RATE) == 0
    assert clipped_per_second(np.zeros(RATE, np.float32), RATE) == 0


def test_loudness_follows_the_gain_and_needs_some_sound() -> None:
    spans = [(0.0, 1.0)]
    whole, half = (measure(voice() * np.float32(gain), RATE, spans) for gain in (1, 0.5))
    assert whole.loudness_lufs is not None
    assert half.loudness_lufs == pytest.approx(whole.loudness_lufs - 6.02, abs=0.05)
    assert measure(voice()[: RATE // 4], RATE, spans).loudness_lufs is None
    assert measure(np.zeros(RATE, np.float32), RATE, spans) == Quality(
        None, None, None, None, 0.0, None
    )


@pytest.mark.slow
def test_the_score_knows_noise_and_not_the_level() -> None:
    dnsmos, speech = Dnsmos(), voice()[: 5 * RATE]  # of which there is one window
    clean = overall_mos(dnsmos, speech, RATE)
    assert clean is not None
    soft = overall_mos(dnsmos, speech * np.float32(0.03), RATE)
    assert soft == pytest.approx(clean, abs=0.02)
    noisy = overall_mos(dnsmos, speech + noise(-30, len(speech) / RATE), RATE)
    assert noisy is not None
    assert noisy < clean - 0.5
    assert overall_mos(dnsmos, np.zeros(RATE, np.float32), RATE) is None
    assert overall_mos(dnsmos, NO_SAMPLES, RATE) is None


GOOD = Quality(3.4, 35.0, 11_000.0, False, 0.0, -23.0)


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (QualityLimits(min_dnsmos=3.5), ("low DNSMOS", "3.4, the minimum is 3.5")),
        (QualityLimits(min_snr_db=40), ("noisy", "35 dB, the minimum is 40 dB")),
        (
            QualityLimits(min_bandwidth_hz=11_500),
            ("narrow bandwidth", "11000 Hz, the minimum is 11500 Hz"),
        ),
        (QualityLimits(min_loudness_lufs=-20), ("too soft", "-23 LUFS, the minimum is -20 LUFS")),
        (QualityLimits(), None),
        (QualityLimits(3.4, 35, 11_000, 0, -23), None),
    ],
)
def test_a_limit_rejects_by_its_measure(
    limits: QualityLimits, fault: tuple[str, str] | None
) -> None:
    assert quality_fault(GOOD, limits) == fault
    # What was not measured rejects nothing.
    assert quality_fault(Quality(None, None, None, None, 0.0, None), limits) is None


def test_clipping_is_rejected_above_its_limit() -> None:
    two = Quality(None, None, None, None, 0.0, None, overlap=0.2)
    assert quality_fault(two, QualityLimits()) == (
        "two voices at once", "in 20% of the speech, the maximum is 5%",
    )  # fmt: skip
    assert quality_fault(two, QualityLimits(max_overlap=0.2)) is None
    clipped = Quality(None, None, None, None, 2.5, None)
    fault = quality_fault(clipped, QualityLimits(max_clipped_per_second=1))
    assert fault is not None
    assert fault[0] == "clipped"
    assert "2.50 clipped places per second" in fault[1]
