"""Speaker identification: the right one is named, whatever the chain did; no voice is refused.

The first test is the condition on which the offline measure was accepted.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from helpers.example import VOICES, read_clip, rows_of
from sheen.codec.snac import Codec
from sheen.scoring.speaker_id import MIN_RECORDINGS, SpeakerProfiles

RATE = 16_000
FITTED = 40
"""Recordings per voice that the profiles are made of; the other 40 are held back."""

Clip = NDArray[np.float32]
Recordings = dict[str, list[Clip]]


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    """The first 80 recordings of each voice, at 16 kHz; no text stands twice in a voice."""
    return {
        voice: [read_clip("corpus", row[0], RATE) for row in rows_of("corpus", voice)[:80]]
        for voice in VOICES
    }


def part(recordings: Recordings, start: int, stop: int | None = None) -> Recordings:
    return {voice: clips[start:stop] for voice, clips in recordings.items()}


@pytest.fixture(scope="module")
def heldback(recordings: Recordings) -> Recordings:
    return part(recordings, FITTED)


@pytest.fixture(scope="module")
def profiles(recordings: Recordings) -> SpeakerProfiles:
    return SpeakerProfiles.fit(part(recordings, 0, FITTED), RATE)


def accuracy(
    profiles: SpeakerProfiles, clips: Mapping[str, Sequence[Clip]], rate: int = RATE
) -> float:
    right = [profiles.identify(clip, rate) == voice for voice in clips for clip in clips[voice]]
    return float(np.mean(right))


def to_rate(clip: Clip, rate: int) -> Clip:
    return resample(torch.from_numpy(clip), RATE, rate).numpy()


def noise(seconds: float = 1.5, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.normal(size=round(seconds * RATE))).astype(np.float32)


def test_accepted_the_right_voice_is_named_for_99_percent(
    profiles: SpeakerProfiles, heldback: Recordings
) -> None:
    assert sum(map(len, heldback.values())) == 160
    assert accuracy(profiles, heldback) >= 0.99


@pytest.mark.parametrize("count", [10, 20])
def test_few_recordings_are_enough(
    recordings: Recordings, heldback: Recordings, count: int
) -> None:
    few = SpeakerProfiles.fit(part(recordings, 0, count), RATE)
    assert accuracy(few, heldback) >= 0.97


def test_the_codec_leaves_the_voice(
    profiles: SpeakerProfiles, heldback: Recordings, codec: Codec
) -> None:
    """The shortest clips, the hardest ones, at another rate and reconstructed by the codec."""
    rebuilt: Recordings = {}
    for voice, clips in heldback.items():
        rebuilt[voice] = []
        for clip in sorted(clips, key=len)[:4]:
            wave = torch.from_numpy(to_rate(clip, codec.sample_rate))
            (codes,) = codec.encode([wave])
            decoded = codec.decode([level[None] for level in codes], seeds=[0])[0]
            rebuilt[voice].append(decoded[: len(wave)].numpy())
    assert accuracy(profiles, rebuilt, codec.sample_rate) >= 0.97


def narrow(clip: Clip) -> Clip:
    """Without what lies above 5 kHz."""
    spectrum = np.fft.rfft(clip)
    spectrum[np.fft.rfftfreq(len(clip), 1 / RATE) > 5000] = 0
    return np.fft.irfft(spectrum, len(clip)).astype(np.float32)


def middle(clip: Clip) -> Clip:
    start = (len(clip) - round(0.6 * RATE)) // 2
    return clip[start : start + round(0.6 * RATE)]


@pytest.mark.parametrize(
    ("change", "rate"),
    [
        pytest.param(lambda clip: 0.1 * clip, RATE, id="20 dB softer"),
        pytest.param(lambda clip: np.pad(clip, (12_345, 0)), RATE, id="silence before"),
        pytest.param(lambda clip: np.pad(clip, (0, 30_000)), RATE, id="silence after"),
        pytest.param(lambda clip: to_rate(clip, 24_000), 24_000, id="24 kHz"),
        pytest.param(lambda clip: to_rate(clip, 44_100), 44_100, id="44.1 kHz"),
    ],
)
def test_what_no_voice_is_made_of_changes_nothing(
    profiles: SpeakerProfiles, heldback: Recordings, change: Any, rate: int
) -> None:
    for clips in heldback.values():
        for clip in clips[:6]:
            assert profiles.identify(change(clip), rate) == profiles.identify(clip, RATE)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(narrow, id="5 kHz of bandwidth"),
        pytest.param(lambda clip: clip + noise(len(clip) / RATE) * clip.std(), id="20 dB of noise"),
        pytest.param(middle, id="0.6 s"),
        pytest.param(lambda clip: np.tile(clip, 4)[: 6 * RATE], id="6 s"),
    ],
)
def test_a_poorer_chain_leaves_the_voice(
    profiles: SpeakerProfiles, heldback: Recordings, change: Any
) -> None:
    poorer = {voice: [change(clip) for clip in clips[:20]] for voice, clips in heldback.items()}
    assert accuracy(profiles, poorer) >= 0.97


def test_permuted_labels_leave_chance(recordings: Recordings) -> None:
    """Nothing but the voice tells: with labels dealt at random, no better than one in four."""
    clips = [clip for own in recordings.values() for clip in own]
    order = np.random.default_rng(0).permutation(len(clips))
    dealt = {
        voice: [clips[index] for index in order[number :: len(VOICES)]]
        for number, voice in enumerate(VOICES)
    }
    profiles = SpeakerProfiles.fit(part(dealt, 0, FITTED), RATE)
    assert accuracy(profiles, part(dealt, FITTED)) < 0.4


def test_the_same_recordings_give_the_same_profiles(recordings: Recordings) -> None:
    one, other = (SpeakerProfiles.fit(part(recordings, 0, 6), RATE) for _ in range(2))
    np.testing.assert_array_equal(one.means, other.means)
    np.testing.assert_array_equal(one.precision, other.precision)


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(RATE, np.float32), "silent"),
        (np.full(RATE, 3e-5, np.float32), "silent"),
        (noise(0.2), "too short: 0.20 s"),
        (np.pad(noise(0.05), (RATE, RATE)), "too short: only [1-9] of its"),
        (np.full(RATE, np.nan, np.float32), "NaN"),
        (np.zeros((2, RATE), np.float32), r"shape \(2, 16000\)"),
    ],
)
def test_clips_without_a_voice_are_refused(
    profiles: SpeakerProfiles, clip: Clip, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        profiles.identify(clip, RATE)


def test_profiles_that_cannot_be_made_are_refused(recordings: Recordings) -> None:
    few = part(recordings, 0, MIN_RECORDINGS)
    SpeakerProfiles.fit(few, RATE)
    with pytest.raises(ValueError, match="two voices"):
        SpeakerProfiles.fit({"slt": few["slt"]}, RATE)
    with pytest.raises(ValueError, match=f"'rms' has 4 recordings.* {MIN_RECORDINGS} at least"):
        SpeakerProfiles.fit(few | {"rms": few["rms"][:4]}, RATE)
    broken = [*few["awb"][:3], np.zeros(RATE, np.float32), few["awb"][4]]
    with pytest.raises(ValueError, match=r"voice 'awb', recording 3: .*silent"):
        SpeakerProfiles.fit(few | {"awb": broken}, RATE)
