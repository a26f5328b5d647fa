"""Joining: chunks of speech as one stream. Nothing here needs a model."""

import random
from collections.abc import Sequence

import numpy as np
import pytest

from sheen.audio.io import Samples
from sheen.engine.joining import FADE_S, ONSET_S, SILENCE, Joiner, pause_after

RATE = 24_000
PAUSE_S = 0.3


def speech(seconds: float, before: float = 0.0, after: float = 0.0, level: float = 0.5) -> Samples:
    """A loud tone that starts and ends abruptly, between hisses below the threshold."""
    sound = np.full(round(seconds * RATE), level, np.float32)
    sound[::2] *= -1
    draw = np.random.default_rng(0)
    hiss = [
        draw.uniform(-0.009, 0.009, round(s * RATE)).astype(np.float32) for s in (before, after)
    ]
    return np.concatenate([hiss[0], sound, hiss[1]])


def join(chunks: Sequence[Samples], seed: int = 0, known: bool = True) -> list[Samples]:
    """The stream of each chunk, from chunks of random lengths. `known`: the last one is."""
    draw = random.Random(seed)
    joiner, streams = Joiner(RATE), []
    for number, chunk in enumerate(chunks):
        joiner.begin(PAUSE_S, last=known and number == len(chunks) - 1)
        parts, at = [np.zeros(0, np.float32)], 0
        while at < len(chunk):
            size = draw.choice([1, 7, 100, 2048, 24_576])
            parts.append(joiner.push(chunk[at : at + size]))
            at += size
        streams.append(np.concatenate([*parts, joiner.end()]))
    return streams


def silences(stream: Samples) -> list[int]:
    """Lengths of the runs without sound, at least 20 ms each."""
    loud = np.flatnonzero(np.abs(stream) >= SILENCE)
    gaps = np.diff(np.concatenate([[-1], loud, [len(stream)]])) - 1
    return [int(gap) for gap in gaps if gap >= 0.02 * RATE]


def test_one_chunk_passes_untouched_and_at_once() -> None:
    chunk = speech(0.5, before=0.7, after=0.9)
    joiner = Joiner(RATE)
    joiner.begin(PAUSE_S, last=True)
    np.testing.assert_array_equal(joiner.push(chunk), chunk)
    assert not len(joiner.end())


@pytest.mark.parametrize("before", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("after", [0.0, 0.002, 0.2, 0.3, 1.5])
def test_between_two_chunks_is_one_pause(before: float, after: float) -> None:
    stream = np.concatenate(join([speech(0.4, after=after), speech(0.4, before=before)]))
    [pause] = silences(stream)
    onset = min(before, ONSET_S)
    # What is loud while the fade goes down or up counts as sound.
    assert pause == pytest.approx((PAUSE_S + onset) * RATE, abs=2 * FADE_S * RATE)


def test_a_seam_between_any_two_values_is_no_step() -> None:
    rows = [np.full(5000, level, np.float32) for level in (0.5, -0.7, 0.9)]
    stream = np.concatenate(join(rows))
    # As steep as a straight line over the fade, where an untreated seam jumps by 1.6.
    assert np.abs(np.diff(stream)).max() <= 1.01 * 0.9 / (FADE_S * RATE)


def test_the_cut_into_chunks_does_not_matter() -> None:
    chunks = [speech(0.3, 0.2, 0.8), speech(0.2, 0.4, 0.0), speech(0.1, 0.0, 0.1), speech(0.3, 2.0)]
    expected = join(chunks)
    for seed in range(1, 20):
        for stream, same in zip(join(chunks, seed), expected, strict=True):
            np.testing.assert_array_equal(stream, same)


def test_inside_a_chunk_nothing_changes() -> None:
    pause = np.concatenate([speech(0.3), speech(0.3, before=1.0)])
    first, second, _ = join([pause, pause, speech(0.1)])
    np.testing.assert_array_equal(first[: len(pause) - 120], pause[:-120])
    np.testing.assert_array_equal(second[120 : len(pause) - 120], pause[120:-120])


def test_a_chunk_without_a_sound_becomes_no_more_than_a_pause() -> None:
    nothing = speech(0.0, before=1.5)
    streams = join([speech(0.2), nothing, speech(0.2)])
    assert len(streams[1]) <= (PAUSE_S + FADE_S) * RATE
    assert len(join([nothing, np.zeros(0, np.float32)])[1]) == 0


def test_no_more_than_fade_and_long_silence_is_held_back() -> None:
    joiner = Joiner(RATE)
    joiner.begin(PAUSE_S, last=False)
    given = speech(0.5, after=0.1)
    assert len(joiner.push(given)) == len(given) - round(FADE_S * RATE)


def test_a_sentence_rests_longer_than_a_clause_and_that_longer_than_a_word() -> None:
    sentence, clause, word = (pause_after(text) for text in ('"Yes."', "yes,", "yes"))
    assert sentence > clause > word > 0
    assert pause_after("") == word
