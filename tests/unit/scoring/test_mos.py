"""DNSMOS: the package's figures, noise lowers them, and what cannot be scored is refused."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from helpers.example import VOICE, clips_of, read_clip
from sheen.scoring.mos import Dnsmos
from sheen.scoring.packaged import UnscorableError, package_file

RATE = 16_000

Clip = NDArray[np.float32]


@pytest.fixture(scope="module")
def dnsmos() -> Dnsmos:
    return Dnsmos()


@pytest.fixture(scope="module")
def speech() -> Clip:
    """2.5 s of a short sentence, said over and over."""
    return np.tile(read_clip(clips_of(VOICE)[0], RATE), 3)[: round(2.5 * RATE)]


def noise(like: Clip, decibels: float) -> Clip:
    """White, so far under a clip."""
    draws = np.random.default_rng(0).normal(size=len(like))
    return (like.std() * 10 ** (-decibels / 20) * draws).astype(np.float32)


@pytest.mark.slow
def test_the_scores_are_those_of_the_package(dnsmos: Dnsmos) -> None:
    """What `speechmos.dnsmos.run` gives, with librosa installed."""
    found = dnsmos.score(read_clip(clips_of("af_aoede")[0], RATE), RATE)
    assert (found.ovrl, found.sig, found.bak) == pytest.approx((3.1175, 3.3849, 4.0068), abs=1e-3)


@pytest.mark.slow
def test_noise_lowers_the_scores(dnsmos: Dnsmos, speech: Clip) -> None:
    clean, little, much = (
        dnsmos.score(clip, RATE)
        for clip in (speech, speech + noise(speech, 20), speech + noise(speech, 5))
    )
    assert clean.ovrl > little.ovrl + 0.2 > much.ovrl + 0.4
    assert clean.bak > little.bak + 0.2 > much.bak + 0.4


@pytest.mark.slow
def test_a_short_clip_is_repeated_and_a_long_one_is_the_mean_of_its_windows(
    dnsmos: Dnsmos, speech: Clip
) -> None:
    assert dnsmos.score(speech, RATE) == dnsmos.score(np.tile(speech, 4), RATE)
    # Windows of 9.01 s, one a second: of 11 s there are two.
    long = np.tile(speech, 5)[: 11 * RATE] * np.linspace(0.2, 1, 11 * RATE, dtype=np.float32)
    first, second = (dnsmos.score(long[s * RATE : s * RATE + 144_160], RATE) for s in (0, 1))
    assert first != second
    assert dnsmos.score(long, RATE).ovrl == pytest.approx((first.ovrl + second.ovrl) / 2)


@pytest.mark.slow
def test_scores_do_not_depend_on_the_sample_rate(dnsmos: Dnsmos, speech: Clip) -> None:
    raised = resample(torch.from_numpy(speech), RATE, 24_000).numpy()
    assert dnsmos.score(raised, 24_000).ovrl == pytest.approx(
        dnsmos.score(speech, RATE).ovrl, abs=0.1
    )


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.full(RATE, 3e-5, np.float32), "silent"),
        (np.full(RATE // 5, 0.1, np.float32), r"too short: 0\.20 s"),
        (np.pad(np.full(RATE // 5, 0.1, np.float32), (RATE, RATE)), r"too short: 0\.20 s"),
        (np.full(RATE, np.nan, np.float32), "NaN"),
    ],
)
def test_clips_without_speech_are_refused(dnsmos: Dnsmos, clip: Clip, said: str) -> None:
    with pytest.raises(UnscorableError, match=said):
        dnsmos.score(clip, RATE)


def test_more_than_one_channel_is_a_mistake(dnsmos: Dnsmos) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 16000\)"):
        dnsmos.score(np.zeros((2, RATE), np.float32), RATE)


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(ValueError, match="package no_such is not installed: pip install"):
        package_file("no_such", "model.onnx")
    with pytest.raises(ValueError, match="lacks the file"):
        package_file("speechmos", "no_such.onnx")
