"""Tempo: the length is n / speed, the pitch stays, and chunks do not matter.

Silence at both ends, and loudness.
"""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheen.audio import effects
from sheen.audio.effects import PEAK, Stretch, Tempo, to_loudness, trim
from sheen.audio.samples import KEPT_SILENCE_S, Samples

RATE = 24_000
SPEEDS = [0.25, 0.5, 0.8, 1.25, 2.0, 4.0]


def tone(count: int, frequency: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(count) / RATE)).astype(np.float32)


def changed(
    samples: Samples, speed: float, lengths: Sequence[int] = (), rate: int = RATE
) -> Samples:
    """At `speed`, from chunks of these lengths and the rest in one."""
    tempo = Tempo(speed, rate)
    pieces = [tempo.push(chunk) for chunk in np.split(samples, np.cumsum(lengths))]
    return np.concatenate([*pieces, tempo.finish()])


@pytest.mark.parametrize(
    ("count", "speed"),
    [
        *((0, 0.25), (1, 4.0), (2, 0.8), (479, 2.0), (1023, 0.26), (2049, 0.999)),
        *((RATE, 1.0), (3 * RATE, 3.7)),
    ],
)
def test_n_samples_become_n_by_speed(speed: float, count: int) -> None:
    made = changed(tone(count), speed)
    assert made.dtype == np.float32
    assert len(made) == round(count / speed)


@given(
    speed=st.sampled_from(SPEEDS),
    lengths=st.lists(st.integers(0, 2500), max_size=12),
    count=st.integers(1, 12_000),
)
def test_chunk_sizes_do_not_change_the_samples(
    speed: float, lengths: list[int], count: int
) -> None:
    samples = np.random.default_rng(count).normal(0, 0.1, count).astype(np.float32)
    assert np.array_equal(changed(samples, speed, lengths), changed(samples, speed))


@pytest.mark.parametrize(
    ("rate", "speed"),
    [(8000, 0.25), (8000, 2.0), (RATE, 0.5), (RATE, 4.0), (44_100, 0.8), (44_100, 1.25)],
)
def test_the_pitch_and_the_loudness_stay(speed: float, rate: int) -> None:
    time = np.arange(2 * rate) / rate
    made = changed((0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), speed, rate=rate)
    assert len(made) == round(2 * rate / speed)
    middle = made[len(made) // 8 : -len(made) // 8]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 2**19))
    assert abs(np.argmax(spectrum) * rate / 2**19 - 440) < 3
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
def test_stretching_keeps_sounds_at_their_relative_places(speed: float) -> None:
    """The first and the last sound are heard, at their time; neither is left out nor moved."""
    samples = np.zeros(RATE, np.float32)
    first, last = tone(3000, 300.0), tone(3000, 900.0)
    samples[:3000], samples[-3000:] = first, last
    made = np.abs(changed(samples, speed)) > 0.1
    heard = np.flatnonzero(made) * speed
    assert heard[0] < 100
    # A window is 1,024 samples; in one that holds an edge, half of it may lie to either side.
    gap = heard[np.argmax(np.diff(heard)) :][:2]
    assert gap == pytest.approx([3000, RATE - 3000], abs=1024 * max(1, speed))
    assert heard[-1] > RATE - 1024


@pytest.mark.parametrize("speed", SPEEDS)
def test_stretched_samples_leave_as_samples_come(speed: float) -> None:
    """What has left is at most a few windows behind, and never ahead of its time."""
    tempo, samples = Tempo(speed, RATE), tone(5 * RATE)
    given = 0
    for start in range(0, len(samples), 500):
        given += len(tempo.push(samples[start : start + 500]))
        assert start + 500 - 4096 <= given * speed <= start + 500
    assert given > 0


def test_speed_one_gives_back_what_it_gets() -> None:
    tempo, samples = Tempo(1.0, RATE), tone(1000)
    assert tempo.push(samples) is samples
    assert len(tempo.finish()) == 0


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_time_stretcher_takes_nothing_after_finish(speed: float) -> None:
    tempo = Tempo(speed, RATE)
    tempo.finish()
    with pytest.raises(RuntimeError, match="make a new one"):
        tempo.push(tone(10))
    with pytest.raises(RuntimeError, match="make a new one"):
        tempo.finish()


@pytest.mark.parametrize("speed", [0.0, 0.249, 4.01, -1.0, float("nan"), float("inf")])
def test_other_speeds_are_refused(speed: float) -> None:
    with pytest.raises(ValueError, match=r"expected a number from 0\.25 to 4\.0"):
        Tempo(speed, RATE)


def test_a_long_chunk_is_copied_a_few_times_and_not_once_for_each_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied = 0
    concatenate = np.concatenate

    def counted(arrays: Sequence[Samples]) -> Samples:
        nonlocal copied
        joined: Samples = concatenate(arrays)
        copied += len(joined)
        return joined

    monkeypatch.setattr(effects.np, "concatenate", counted)
    tempo = Tempo(0.5, RATE)
    made = len(tempo.push(tone(10 * RATE))) + len(tempo.finish())
    assert made == 20 * RATE
    assert copied <= 3 * made


# Silence at both ends, and loudness


def _tone(seconds: float, peak: float = 0.3) -> Samples:
    at = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * 220 * at)).astype(np.float32)


@pytest.mark.parametrize(("before", "after"), [(1.0, 0.0), (0.0, 1.5), (0.7, 0.3), (0.0, 0.0)])
def test_silence_goes_at_both_ends_and_nothing_between(before: float, after: float) -> None:
    middle = np.concatenate([_tone(0.5), np.zeros(RATE, np.float32), _tone(0.5)])
    quiet = np.random.default_rng(0).normal(0, 1e-4, round((before + after) * RATE))
    ends = np.split(quiet.astype(np.float32), [round(before * RATE)])
    kept = trim(np.concatenate([ends[0], middle, ends[1]]), RATE, -50.0)
    most = len(middle) + 2 * round(KEPT_SILENCE_S * RATE)
    assert len(middle) - 20 <= len(kept) <= most
    start = int(np.argmax(np.abs(kept) > 0.1)) - int(np.argmax(np.abs(middle) > 0.1))
    inner = slice(10, len(middle) - 10)
    np.testing.assert_array_equal(kept[start + 10 : start + len(middle) - 10], middle[inner])


def test_trimming_leaves_nothing_of_silence() -> None:
    assert len(trim(np.zeros(RATE, np.float32), RATE, -50.0)) == 0


def test_clips_come_to_one_loudness() -> None:
    soft, loud = (
        to_loudness(_tone(2.0, 0.02), RATE, -23.0),
        to_loudness(_tone(2.0, 0.8), RATE, -23.0),
    )
    np.testing.assert_allclose(soft, loud, rtol=0.02, atol=1e-3)
    assert np.abs(to_loudness(_tone(2.0, 0.1), RATE, 0.0)).max() == pytest.approx(PEAK)
    short = _tone(0.3)
    assert to_loudness(short, RATE, -23.0) is short
    silence = np.zeros(RATE, np.float32)
    assert not to_loudness(silence, RATE, -23.0).any()


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_silence_of_a_stated_length_is_as_long_at_any_speed(speed: float) -> None:
    stretch = Stretch(speed, RATE)
    pieces = [(tone(9_001), 1.0), (np.zeros(7_777, np.float32), None), (tone(5_000), 1.5)]
    parts = []
    for samples, rate in pieces:
        for part in np.array_split(samples, 5):
            parts.append(stretch.push(part, rate))
    stream = np.concatenate([*parts, stretch.finish()])
    lengths = round(9_001 / speed), 7_777, round(5_000 / (speed * 1.5))
    assert len(stream) == sum(lengths)
    assert not stream[lengths[0] : -lengths[2]].any()
    assert stretch.seconds(RATE, 1.5) == 1 / (speed * 1.5)
    assert stretch.seconds(RATE, None) == 1.0
