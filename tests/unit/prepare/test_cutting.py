"""Where recordings are cut: in pauses, the longer first; lengths; silence that is kept."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheen.prepare.cutting.cut import (
    CUT_OFF,
    EDGE,
    FRAME_S,
    JOIN_S,
    LEFT_S,
    PAUSE,
    QUIETEST,
    RIGHT_S,
    STEP_S,
    CutSettings,
    LevelMeter,
    Segment,
    cut,
    speech_regions,
)

SETTINGS = CutSettings()
SPEECH, SILENCE = 1e-2, 1e-7  # mean squares


def recording(*parts: tuple[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities, levels and length of "speech" and "pause" of so many seconds each."""
    speaking = np.concatenate(
        [np.full(round(seconds / STEP_S), kind == "speech") for kind, seconds in parts]
    )
    seconds = len(speaking) * STEP_S
    frames = np.minimum((np.arange(math.ceil(seconds / FRAME_S)) + 0.5) * FRAME_S, seconds - 1e-6)
    probabilities = np.where(speaking[(frames / STEP_S).astype(int)], 0.95, 0.02)
    levels = np.where(speaking, SPEECH, SILENCE)
    return probabilities.astype(np.float32), levels.astype(np.float32), seconds


def cuts_of(*parts: tuple[str, float], settings: CutSettings = SETTINGS) -> list[Segment]:
    return cut(*recording(*parts), settings)


def test_a_segment_is_speech_with_a_little_silence_on_both_sides() -> None:
    (segment,) = cuts_of(("pause", 1.0), ("speech", 4.0), ("pause", 1.0))
    assert segment.start == pytest.approx(1.0 - LEFT_S, abs=0.04)
    assert segment.end == pytest.approx(5.0 + RIGHT_S, abs=0.04)
    assert segment.speech == pytest.approx(4.0, abs=0.04)
    assert (segment.start_at, segment.end_at) == (PAUSE, PAUSE)
    assert segment.level_db == pytest.approx(-20.0, abs=0.1)


def test_a_long_pause_ends_a_segment_and_a_short_one_does_not() -> None:
    segments = cuts_of(
        ("pause", 0.5), ("speech", 3.0), ("pause", 0.3), ("speech", 2.0), ("pause", 0.8),
        ("speech", 3.0), ("pause", 0.5),
    )  # fmt: skip
    assert [round(segment.seconds) for segment in segments] == [6, 3]


def test_too_long_speech_is_cut_in_its_longest_late_pause() -> None:
    segments = cuts_of(
        ("speech", 3.0), ("pause", 0.45), ("speech", 6.0), ("pause", 0.35), ("speech", 2.0),
        ("pause", 0.42), ("speech", 8.0),
    )  # fmt: skip
    assert [segment.start_at for segment in segments] == [CUT_OFF, PAUSE]
    middle = 3.0 + 0.45 + 6.0 + 0.35 + 2.0 + 0.21
    assert segments[0].end <= middle <= segments[1].start


def test_speech_without_a_pause_is_cut_at_its_quietest_place_and_says_so() -> None:
    probabilities, levels, seconds = recording(("speech", 20.0))
    levels[1000:1020] = 1e-4  # 200 ms from 10 s on
    first, second = cut(probabilities, levels, seconds, SETTINGS)
    assert first.end == second.start == pytest.approx(10.1, abs=0.06)
    assert (first.end_at, second.start_at) == (QUIETEST, QUIETEST)
    assert (first.start_at, second.end_at) == (CUT_OFF, CUT_OFF)


def test_what_is_too_short_is_joined_with_the_nearer_neighbour() -> None:
    segments = cuts_of(
        ("speech", 3.0), ("pause", 0.9), ("speech", 0.5), ("pause", 0.6), ("speech", 3.0)
    )
    assert [round(segment.seconds, 1) for segment in segments] == [3.1, 4.2]


def test_what_is_too_short_with_the_silence_that_is_kept_is_joined() -> None:
    """Of which there may be little: pads end before a breath."""
    probabilities, levels, seconds = recording(
        ("pause", 1.0), ("speech", 1.8), ("pause", 0.8), ("speech", 3.0), ("pause", 0.5)
    )
    levels[82:94] = 1e-4
    (segment,) = cut(probabilities, levels, seconds, SETTINGS)
    assert segment.seconds == pytest.approx(5.8, abs=0.1)


@pytest.mark.parametrize("settings", [SETTINGS, CutSettings(2.0, 4.0)])
def test_no_part_of_long_speech_is_too_short(settings: CutSettings) -> None:
    """Wherever its quietest place is: near the end of what may be a segment here."""
    longest = settings.max_seconds - LEFT_S - RIGHT_S
    probabilities, levels, seconds = recording(
        ("pause", 1.0), ("speech", longest + 0.6), ("pause", 1.0)
    )
    levels[round((longest - 1.2) / STEP_S) + 100 :][:10] = 1e-4
    segments = cut(probabilities, levels, seconds, settings)
    assert len(segments) == 2
    assert min(segment.seconds for segment in segments) >= settings.min_seconds


def test_what_is_far_from_all_else_stays_short() -> None:
    segments = cuts_of(("speech", 3.0), ("pause", 2.0), ("speech", 0.5), ("pause", 2.0))
    assert [segment.seconds < SETTINGS.min_seconds for segment in segments] == [False, True]


def test_a_pad_ends_before_a_breath() -> None:
    probabilities, levels, seconds = recording(("pause", 1.0), ("speech", 4.0), ("pause", 1.0))
    levels[80:90] = 1e-4  # a breath from 0.8 to 0.9 s, most of it within the pad
    (segment,) = cut(probabilities, levels, seconds, SETTINGS)
    assert 0.9 <= segment.start <= 0.95


def test_a_segment_does_not_begin_within_a_soft_consonant_that_voice_activity_misses() -> None:
    probabilities, levels, seconds = recording(("pause", 1.0), ("speech", 4.0), ("pause", 1.0))
    (before,) = cut(probabilities, levels, seconds, SETTINGS)
    levels[76:100] = levels.max() / 100  # 20 dB softer, from 0.76 s on
    (segment,) = cut(probabilities, levels, seconds, SETTINGS)
    assert 0.7 < segment.start <= 0.76 < before.start
    levels[:100] = levels.max() / 100  # noise of that level: no place is better
    (noisy,) = cut(probabilities, levels, seconds, SETTINGS)
    assert noisy.start >= 1.0 - LEFT_S - STEP_S


def test_a_segment_does_not_end_before_a_final_consonant_is_released() -> None:
    probabilities, levels, seconds = recording(("pause", 1.0), ("speech", 4.0), ("pause", 1.0))
    end = 5.0 + RIGHT_S
    levels[500 : round(end / STEP_S)] *= 10  # the closure, less quiet than the pause is later on
    (before,) = cut(probabilities, levels, seconds, SETTINGS)
    assert before.end == pytest.approx(end, abs=0.04)
    released = math.ceil(before.end / STEP_S) + 2
    levels[released : released + 3] = levels.max() / 100  # 20 dB softer
    (segment,) = cut(probabilities, levels, seconds, SETTINGS)
    assert segment.end == pytest.approx((released + 5) * STEP_S)
    levels[released : released + 30] = levels.max() / 100  # a breath, or noise: as before
    (breath,) = cut(probabilities, levels, seconds, SETTINGS)
    assert breath.end == before.end


def test_a_click_and_a_dip_are_neither_speech_nor_pause() -> None:
    probabilities = np.full(100, 0.02, np.float32)
    probabilities[10:12] = 0.9
    probabilities[40:80] = 0.9
    probabilities[60:62] = 0.1
    probabilities[70:72] = 0.4  # above the lower threshold
    assert speech_regions(probabilities, 0.5) == [(40 * FRAME_S, 80 * FRAME_S)]
    assert speech_regions(probabilities[:0], 0.5) == []


PARTS = st.lists(
    st.tuples(st.sampled_from(["speech", "pause"]), st.floats(0.05, 40.0)), min_size=1, max_size=12
)


@given(PARTS, st.integers(0, 2**32 - 1))
def test_of_any_recording_segments_keep_to_the_lengths_and_hold_all_speech(
    parts: list[tuple[str, float]], seed: int
) -> None:
    probabilities, levels, seconds = recording(*parts)
    levels *= np.random.default_rng(seed).uniform(0.1, 1.0, len(levels)).astype(np.float32)
    segments = cut(probabilities, levels, seconds, SETTINGS)
    at = 0.0
    for segment in segments:
        assert at <= segment.start < segment.end <= seconds + 1e-6
        assert segment.seconds <= SETTINGS.max_seconds + 1e-6
        at = segment.end
    for start, end in speech_regions(probabilities, SETTINGS.threshold):
        end = min(end, seconds)
        held = sum(
            max(0.0, min(end, segment.end) - max(start, segment.start)) for segment in segments
        )
        assert held == pytest.approx(end - start, abs=0.01)
    spoken = [
        (one.start + one.regions[0][0], one.start + one.regions[-1][1], one.seconds)
        for one in segments
    ]
    longest = SETTINGS.max_seconds - LEFT_S - RIGHT_S
    for (start, until, before), (since, end, after) in pairwise(spoken):
        if min(before, after) < SETTINGS.min_seconds:
            assert since - until > JOIN_S - 0.01 or end - start > longest - 0.01


@pytest.mark.parametrize("db", [-5.0, -30.0])
def test_speech_that_goes_on_to_the_last_sample_is_cut_off_unless_it_dies_away(db: float) -> None:
    probabilities, levels, seconds = recording(("pause", 1.0), ("speech", 4.0))
    levels[-4:] = SPEECH * 10 ** (db / 10)
    (segment,) = cut(probabilities, levels, seconds, SETTINGS)
    assert segment.end_at == (CUT_OFF if db > -15 else EDGE)
    assert segment.start_at == PAUSE


def test_lengths_that_cannot_be_cut_are_refused() -> None:
    with pytest.raises(ValueError, match=r"--max-seconds 3 is less than twice --min-seconds 2"):
        CutSettings(max_seconds=3.0)


def test_levels_do_not_depend_on_the_pieces() -> None:
    samples = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    whole, meter = LevelMeter().push(samples), LevelMeter()
    pieces = np.concatenate([meter.push(part) for part in np.split(samples, [7, 300, 301, 3333])])
    assert whole.tolist() == pieces.tolist()
    assert len(whole) == 25
