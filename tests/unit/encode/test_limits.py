"""Limits, each with its reason."""

import numpy as np

from sheen.encode.config import RecordingLimits, length_fault, sound_fault, text_fault

RATE = 24_000


def tone(seconds: float, peak: float = 0.3) -> np.ndarray:
    at = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * 220 * at)).astype(np.float32)


def test_recordings_that_are_too_short_or_too_long_are_rejected() -> None:
    limits = RecordingLimits(min_seconds=0.5, max_seconds=10.0)
    assert length_fault(0.499, limits) == ("too short", "0.499 s, the minimum is 0.5 s")
    assert length_fault(0.5, limits) is None
    assert length_fault(10.0, limits) is None
    assert length_fault(10.06, limits) == ("too long", "10.1 s, the maximum is 10 s")
    assert length_fault(1e6, RecordingLimits(max_seconds=None)) is None


def test_silent_and_clipped_recordings_are_rejected() -> None:
    assert sound_fault(tone(1.0), RecordingLimits()) is None
    reason, detail = sound_fault(tone(1.0, peak=0.0005), RecordingLimits()) or ("", "")
    assert (reason, detail) == ("silent", "the loudest sample has -66 dB, the minimum is -60")
    assert sound_fault(np.zeros(100, np.float32), RecordingLimits(silent_below_db=None)) is None
    loud = np.clip(tone(1.0, peak=2.0), -1.0, 1.0)
    reason, detail = sound_fault(loud, RecordingLimits()) or ("", "")
    assert reason == "clipped"
    assert "the maximum is 1.0%" in detail
    assert sound_fault(loud, RecordingLimits(max_clipped=None)) is None


def test_a_text_that_is_too_long_or_short_for_its_recording_is_rejected() -> None:
    limits = RecordingLimits(min_text_rate=2.0, max_text_rate=30.0)
    assert text_fault("twenty characters, ok", 5.0, limits) is None
    assert (text_fault("a", 5.0, limits) or ("",))[0] == "implausible speech rate"
    _, detail = text_fault("x" * 100, 2.0, limits) or ("", "")
    assert detail == "100 characters in 2.00 s are 50.0 per second, expected 2 to 30"
