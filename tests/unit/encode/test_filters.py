"""Limits, each with its reason; trimming and loudness."""

import numpy as np
import pytest

from sheen.audio.effects import KEPT_SILENCE_S, PEAK, to_loudness, trim
from sheen.encode.filters import Limits, length_fault, sound_fault, text_fault

RATE = 24_000


def tone(seconds: float, peak: float = 0.3) -> np.ndarray:
    at = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * 220 * at)).astype(np.float32)


def test_lengths() -> None:
    limits = Limits(min_seconds=0.5, max_seconds=10.0)
    assert length_fault(0.499, limits) == ("too short", "0.499 s, the minimum is 0.5 s")
    assert length_fault(0.5, limits) is None
    assert length_fault(10.0, limits) is None
    assert length_fault(10.06, limits) == ("too long", "10.1 s, the maximum is 10 s")
    assert length_fault(1e6, Limits(max_seconds=None)) is None


def test_silence_and_clipping() -> None:
    assert sound_fault(tone(1.0), Limits()) is None
    reason, detail = sound_fault(tone(1.0, peak=0.0005), Limits()) or ("", "")
    assert (reason, detail) == ("silent", "the loudest sample has -66 dB, the minimum is -60")
    assert sound_fault(np.zeros(100, np.float32), Limits(silent_below_db=None)) is None
    loud = np.clip(tone(1.0, peak=2.0), -1.0, 1.0)
    reason, detail = sound_fault(loud, Limits()) or ("", "")
    assert reason == "clipped"
    assert "the maximum is 1.0%" in detail
    assert sound_fault(loud, Limits(max_clipped=None)) is None


def test_speech_rate() -> None:
    limits = Limits(min_text_rate=2.0, max_text_rate=30.0)
    assert text_fault("twenty characters, ok", 5.0, limits) is None
    assert (text_fault("a", 5.0, limits) or ("",))[0] == "implausible speech rate"
    _, detail = text_fault("x" * 100, 2.0, limits) or ("", "")
    assert detail == "100 characters in 2.00 s are 50.0 per second, expected 2 to 30"
    assert text_fault("x" * 100, 0.1, Limits(max_text_rate=None)) is None


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.0), (0.0, 1.5), (0.7, 0.3), (0.0, 0.0)])
def test_silence_goes_at_both_ends_and_nothing_between(before: float, after: float) -> None:
    middle = np.concatenate([tone(0.5), np.zeros(RATE, np.float32), tone(0.5)])
    quiet = np.random.default_rng(0).normal(0, 1e-4, round((before + after) * RATE))
    ends = np.split(quiet.astype(np.float32), [round(before * RATE)])
    kept = trim(np.concatenate([ends[0], middle, ends[1]]), RATE, -50.0)
    most = len(middle) + 2 * round(KEPT_SILENCE_S * RATE)
    assert len(middle) - 20 <= len(kept) <= most
    start = int(np.argmax(np.abs(kept) > 0.1)) - int(np.argmax(np.abs(middle) > 0.1))
    inner = slice(10, len(middle) - 10)
    np.testing.assert_array_equal(kept[start + 10 : start + len(middle) - 10], middle[inner])


def test_of_silence_nothing_is_left() -> None:
    assert len(trim(np.zeros(RATE, np.float32), RATE, -50.0)) == 0


def test_clips_come_to_one_loudness() -> None:
    soft, loud = to_loudness(tone(2.0, 0.02), RATE, -23.0), to_loudness(tone(2.0, 0.8), RATE, -23.0)
    np.testing.assert_allclose(soft, loud, rtol=0.02, atol=1e-3)
    assert np.abs(to_loudness(tone(2.0, 0.1), RATE, 0.0)).max() == pytest.approx(PEAK)
    short = tone(0.3)
    assert to_loudness(short, RATE, -23.0) is short
    silence = np.zeros(RATE, np.float32)
    assert not to_loudness(silence, RATE, -23.0).any()
