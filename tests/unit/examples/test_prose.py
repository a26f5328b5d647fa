"""The English example's measures of a long text: its joins, and whether one voice speaks it."""

import sys
from pathlib import Path

import numpy as np
import pytest

import sheen
from helpers.example import ENGLISH, RATE, clips_of, load_script, read_clip
from helpers.recogniser import tiny_en
from sheen.engine.voice import Voice
from sheen.scoring.speaker_id import SpeakerProfiles
from sheen.speaker import Audio

sys.path.append(str(ENGLISH))
prose = load_script(ENGLISH / "prose.py")
TEXT = "It was late when he came home. The house was dark."
"""In 2.9 s: of a fifth of it, doubled until it is long enough, DNSMOS has one window."""


@pytest.mark.slow
def test_the_samples_are_those_of_the_api_and_a_join_follows_a_pause(
    voice: Voice, checkpoint: Path
) -> None:
    text = "It was late. He came home."
    spoken = prose.speak(voice, text, "heart", 0.4, seed=1)
    with sheen.load(str(checkpoint), device="cpu", max_seconds=0.4) as speaker:
        expected = speaker.synthesize(text, "heart", seed=1).samples
    np.testing.assert_array_equal(spoken.audio.samples, expected)
    assert spoken.joins
    for join in spoken.joins:
        assert not expected[join - 100 : join].any()
        assert expected[join : join + 100].any()


def test_a_click_belongs_to_the_join_that_it_is_at() -> None:
    tone = 0.1 * np.sin(np.arange(RATE) / 20).astype(np.float32)
    samples = np.concatenate([tone, np.zeros(RATE // 3, np.float32), tone])
    join = len(samples) - RATE
    step = 0.1 / 20

    def steps(samples: np.ndarray, joins: list[int]) -> tuple[float, float]:
        found: tuple[float, float] = prose.largest_steps(
            prose.Prose(Audio(samples, RATE, "stop"), joins)
        )
        return found

    for place in (RATE - 10, join + 10):
        clicked = samples.copy()
        clicked[place] = 0.9
        at_join, elsewhere = steps(clicked, [join])
        assert at_join > 0.7
        assert elsewhere == pytest.approx(step, rel=0.05)
    clicked = samples.copy()
    clicked[join + RATE // 2] = 0.9
    at_join, elsewhere = steps(clicked, [join])
    assert elsewhere > 0.7
    assert at_join < 0.1
    assert np.isnan(steps(tone, [])[0])


@pytest.mark.slow
def test_another_voice_at_the_end_is_less_similar_with_and_without_recordings() -> None:
    recordings = {
        voice: [read_clip(clip) for clip in clips_of(voice)[-7:]] for voice in ("heart", "am_onyx")
    }
    parts = [*recordings["heart"][:2], recordings["am_onyx"][0]]
    same, near, far = prose.similarities(parts, RATE, None, "heart")
    assert same == pytest.approx(1)
    assert near > far + 0.1
    rest = {voice: clips[2:] for voice, clips in recordings.items()}
    profiles = SpeakerProfiles.fit(rest, RATE)
    *near_ones, far = prose.similarities(parts, RATE, profiles, "heart")
    assert min(near_ones) > 0.5 > far


@pytest.mark.slow
def test_a_text_is_spoken_measured_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, wav = tmp_path / "text.txt", tmp_path / "text.wav"
    text.write_text(TEXT, "utf-8")
    words = ["--text", str(text), "--asr", tiny_en(), "--max-seconds", "5", "--output", str(wav)]
    assert prose.main(words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "finish reason stop" in printed[0]
    assert printed[1].startswith("WER ")
    assert "in 11 words" in printed[1]
    assert len(printed) == 5 + prose.PARTS + 1
    assert wav.stat().st_size > 3 * RATE


def test_a_text_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prose.main(["--text", str(tmp_path / "none.txt")])
    assert ended.value.code == 2
    assert "none.txt" in capsys.readouterr().err
