"""Word times at pauses: exact to the samples, whatever side an aligner gave the silence to."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from sheen.scoring.asr.transcript import NEAR_S, Times, refine

RATE = 16_000


def clip(*parts: float) -> tuple[NDArray[np.float32], Times]:
    """Sounds of these seconds, or silence where they are negative; and when the sounds are."""
    draws = np.random.default_rng(0)
    pieces, times, at = [], [], 0.0
    for seconds in parts:
        count = round(abs(seconds) * RATE)
        loud = 0.1 if seconds > 0 else 1e-4
        pieces.append(loud * draws.uniform(-1, 1, count))
        if seconds > 0:
            times.append((at, at + seconds))
        at += abs(seconds)
    return np.concatenate(pieces).astype(np.float32), times


def assert_near(found: Times, expected: Times) -> None:
    assert np.abs(np.array(found) - np.array(expected)).max() <= 0.011


@pytest.mark.parametrize("error", [-0.12, 0.0, 0.12])
@pytest.mark.parametrize("late", [0.0, 0.5, 1.0])
def test_a_pause_is_no_words_wherever_in_it_the_aligner_put_the_edge(
    error: float, late: float
) -> None:
    waveform, truth = clip(-0.2, 0.4, -0.3, 0.3, -0.1, 0.5, -0.4)
    edges = [
        before[1] + late * (after[0] - before[1]) + error * (number == 0)
        for number, (before, after) in enumerate(itertools.pairwise(truth))
    ]
    edges = [0.0, *edges, len(waveform) / RATE]
    assert_near(refine(waveform, RATE, list(itertools.pairwise(edges))), truth)


def test_where_nobody_pauses_the_aligners_edge_stays() -> None:
    waveform, _ = clip(-0.1, 1.0, -0.1)
    times = [(0.0, 0.42), (0.42, 0.8), (0.8, 1.2)]
    assert_near(refine(waveform, RATE, times), [(0.1, 0.42), (0.42, 0.8), (0.8, 1.1)])


def test_a_short_silence_or_one_that_is_far_is_none_between_words() -> None:
    waveform, _ = clip(0.5, -0.04, 0.5, -0.2, 0.6)
    far = 1.04 - NEAR_S - 0.02
    times = [(0.0, 0.52), (0.52, far), (far, 1.84)]
    assert_near(refine(waveform, RATE, times), times)


def test_of_two_silences_the_longer_one_is_between_words() -> None:
    waveform, _ = clip(0.4, -0.08, 0.1, -0.2, 0.4)
    assert_near(refine(waveform, RATE, [(0.0, 0.5), (0.5, 1.18)]), [(0.0, 0.58), (0.78, 1.18)])


@pytest.mark.parametrize("samples", [0, 3, RATE])
def test_silence_keeps_the_aligners_times(samples: int) -> None:
    times = [(0.0, 0.0), (0.0, samples / RATE)]
    assert refine(np.zeros(samples, np.float32), RATE, times) == times
    assert refine(np.zeros(samples, np.float32), RATE, []) == []
