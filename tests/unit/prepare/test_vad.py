"""Voice activity: speech is told from silence, in whatever pieces a recording comes."""

import numpy as np
import pytest

from helpers.example import VOICE, clips_of, read_clip
from sheen.prepare.cutting.cut import speech_regions
from sheen.prepare.cutting.vad import FRAME, RATE, Probabilities, VoiceActivity


@pytest.fixture(scope="module")
def voice() -> VoiceActivity:
    return VoiceActivity()


def probabilities(voice: VoiceActivity, pieces: list[np.ndarray]) -> Probabilities:
    voice.reset()
    return np.concatenate([*(voice.push(piece) for piece in pieces), voice.flush()])


def test_speech_is_found_and_silence_is_not(voice: VoiceActivity) -> None:
    clip = read_clip(clips_of(VOICE)[5], RATE)
    second = (1e-4 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    found = probabilities(voice, [second, clip, second])
    regions = speech_regions(found, 0.5)
    assert regions[0][0] == pytest.approx(1.0, abs=0.25)
    assert regions[-1][1] == pytest.approx(1.0 + len(clip) / RATE, abs=0.25)
    assert not speech_regions(probabilities(voice, [np.zeros(3 * RATE, np.float32)]), 0.5)


def test_a_recording_may_come_in_any_pieces(voice: VoiceActivity) -> None:
    clip = np.tile(read_clip(clips_of("am_onyx")[3], RATE), 6)
    whole = probabilities(voice, [clip])
    assert len(whole) == -(-len(clip) // FRAME)
    for sizes in ([1], [511, 512, 513], [300 * FRAME]):
        edges = np.cumsum(np.resize(sizes, 200))
        pieces = np.split(clip, edges[edges < len(clip)])
        assert probabilities(voice, pieces).tolist() == whole.tolist()
