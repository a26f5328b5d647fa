"""Speakers: the right one is named, whatever the chain did, and similarity keeps its scale."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from helpers.example import VOICE, VOICES, clips_of, read_clip
from sheen.codec.snac import Codec
from sheen.scoring.packaged import UnscorableError
from sheen.scoring.speaker_id import MIN_RECORDINGS, SpeakerEncoder, SpeakerProfiles

RATE = 16_000
FITTED = 6
"""Recordings per voice that the profiles are made of; as many are held back."""

Clip = NDArray[np.float32]
Recordings = dict[str, list[Clip]]


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    """Recordings of each voice, at 16 kHz, in no order of length."""
    ordered = {voice: sorted(clips_of(voice), key=lambda clip: clip.id) for voice in VOICES}
    return {
        voice: [read_clip(clip, RATE) for clip in ordered[voice][: 2 * FITTED]] for voice in VOICES
    }


def part(recordings: Recordings, start: int, stop: int | None = None) -> Recordings:
    return {voice: clips[start:stop] for voice, clips in recordings.items()}


@pytest.fixture(scope="module")
def heldback(recordings: Recordings) -> Recordings:
    return part(recordings, FITTED)


@pytest.fixture(scope="module")
def profiles(recordings: Recordings) -> SpeakerProfiles:
    return SpeakerProfiles.fit(part(recordings, 0, FITTED), RATE)


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


Embeddings = Mapping[str, Sequence[NDArray[Any]]]


def embed(
    encoder: SpeakerEncoder, clips: Mapping[str, Sequence[Clip]], rate: int = RATE
) -> Embeddings:
    return {voice: [encoder.embed(clip, rate) for clip in clips[voice]] for voice in clips}


@pytest.fixture(scope="module")
def embedded(encoder: SpeakerEncoder, heldback: Recordings) -> Embeddings:
    """Of those that were held back."""
    return embed(encoder, heldback)


def accuracy(profiles: SpeakerProfiles, embeddings: Embeddings) -> float:
    right = [
        profiles.identify(embedding) == voice
        for voice in embeddings
        for embedding in embeddings[voice]
    ]
    return float(np.mean(right))


def to_rate(clip: Clip, rate: int) -> Clip:
    return resample(torch.from_numpy(clip), RATE, rate).numpy()


def noise(seconds: float = 1.5, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.normal(size=round(seconds * RATE))).astype(np.float32)


@pytest.mark.slow
def test_recordings_that_were_held_back_are_named_right(
    profiles: SpeakerProfiles, embedded: Embeddings
) -> None:
    assert accuracy(profiles, embedded) >= 0.97


def test_similarity_is_1_for_the_own_voice_and_0_for_the_nearest_other(
    profiles: SpeakerProfiles, embedded: Embeddings
) -> None:
    for voice in VOICES:
        means = {
            other: float(np.mean([profiles.similarity(point, voice) for point in points]))
            for other, points in embedded.items()
        }
        assert means.pop(voice) == pytest.approx(1, abs=0.3)
        assert max(means.values()) == pytest.approx(0, abs=0.3)


def test_few_recordings_are_enough(recordings: Recordings, embedded: Embeddings) -> None:
    few = SpeakerProfiles.fit(part(recordings, 0, MIN_RECORDINGS), RATE)
    assert accuracy(few, embedded) >= 0.9


@pytest.mark.slow
def test_the_codec_leaves_the_voice(
    codec: Codec, profiles: SpeakerProfiles, encoder: SpeakerEncoder, heldback: Recordings
) -> None:
    """Which it was trained on most."""
    rebuilt: Recordings = {VOICE: []}
    for clip in heldback[VOICE][:4]:
        wave = torch.from_numpy(to_rate(clip, codec.sample_rate))
        (codes,) = codec.encode([wave])
        decoded = codec.decode([level[None] for level in codes], seeds=[0])[0]
        rebuilt[VOICE].append(decoded[: len(wave)].numpy())
    assert accuracy(profiles, embed(encoder, rebuilt, codec.sample_rate)) == 1


@pytest.mark.parametrize(
    ("change", "rate"),
    [
        pytest.param(lambda clip: 0.1 * clip, RATE, id="20 dB softer"),
        pytest.param(lambda clip: np.pad(clip, (12_345, 30_000)), RATE, id="silence around it"),
        pytest.param(lambda clip: to_rate(clip, 24_000), 24_000, id="24 kHz"),
        pytest.param(lambda clip: to_rate(clip, 44_100), 44_100, id="44.1 kHz"),
    ],
)
def test_what_no_voice_is_made_of_changes_nothing(
    encoder: SpeakerEncoder, heldback: Recordings, embedded: Embeddings, change: Any, rate: int
) -> None:
    for voice, clips in heldback.items():
        for clip, embedding in zip(clips[:3], embedded[voice], strict=False):
            same = encoder.embed(change(clip), rate) @ embedding
            assert same == pytest.approx(1, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda clip: clip + noise(len(clip) / RATE) * clip.std(), id="20 dB of noise"),
        pytest.param(lambda clip: np.tile(clip, 4)[: 6 * RATE], id="6 s"),
    ],
)
def test_a_poorer_chain_leaves_the_voice(
    profiles: SpeakerProfiles, encoder: SpeakerEncoder, heldback: Recordings, change: Any
) -> None:
    poorer = {voice: [change(clip) for clip in clips[:5]] for voice, clips in heldback.items()}
    assert accuracy(profiles, embed(encoder, poorer)) >= 0.9


@pytest.mark.slow
def test_the_same_recordings_give_the_same_profiles(recordings: Recordings) -> None:
    two = {voice: recordings[voice] for voice in VOICES[:2]}
    one, other = (SpeakerProfiles.fit(part(two, 0, MIN_RECORDINGS), RATE) for _ in range(2))
    np.testing.assert_array_equal(one.centroids, other.centroids)
    another = SpeakerProfiles.fit(part(two, 1, 1 + MIN_RECORDINGS), RATE)
    assert one.digest == other.digest != another.digest


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(RATE, np.float32), "silent"),
        (noise(0.2), r"too short: 0\.20 s"),
        (np.pad(noise(0.05), (RATE, RATE)), r"too short: 0\.05 s"),
    ],
)
def test_clips_without_a_voice_are_refused(encoder: SpeakerEncoder, clip: Clip, said: str) -> None:
    with pytest.raises(UnscorableError, match=said):
        encoder.embed(clip, RATE)


@pytest.mark.slow
def test_profiles_that_cannot_be_made_are_refused(recordings: Recordings) -> None:
    few = part(recordings, 0, MIN_RECORDINGS)
    with pytest.raises(ValueError, match="two voices"):
        SpeakerProfiles.fit({VOICE: few[VOICE]}, RATE)
    with pytest.raises(ValueError, match=f"'am_onyx' has 4 .* at least {MIN_RECORDINGS}"):
        SpeakerProfiles.fit(few | {"am_onyx": few["am_onyx"][:4]}, RATE)
    broken = [*few["af_aoede"][:3], np.zeros(RATE, np.float32), few["af_aoede"][4]]
    with pytest.raises(ValueError, match=r"voice 'af_aoede', recording 3: .*silent"):
        SpeakerProfiles.fit(few | {"af_aoede": broken}, RATE)
    known, other = few[VOICE], few["af_aoede"]
    with pytest.raises(ValueError, match=f"'{VOICE}': recordings of 'twin' are as similar"):
        SpeakerProfiles.fit({VOICE: known, "af_aoede": other, "twin": known}, RATE)
