"""A codec's quality: the figures are those of its clips, the control fails.

What concerns the real codec and ASR is measured once, on four recordings.
The rest looks at the bookkeeping, with a codec whose codes are the samples and an ASR that says
what it is told to.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.example import RATE, VOICE, clips_of, read_clip
from helpers.measured import CODED, Measured, PcmCodec, Told, measure, noisy
from sheen.audio.spectral import mel_distance
from sheen.codec.snac import Codec
from sheen.scoring import code_usage
from sheen.scoring.codec import CodecReport, Recording, Waveform, measure_codec
from sheen.scoring.speaker_id import ALL, SpeakerProfiles

pytestmark = pytest.mark.usefixtures("speed_timed_briefly")


def untimed(report: CodecReport) -> CodecReport:
    return replace(report, encode_realtime=0.0, decode_realtime=0.0)


# The real codec and ASR


@pytest.mark.slow
def test_the_codec_keeps_the_words_and_shuffling_its_codes_does_not(measured: Measured) -> None:
    report, _ = measured
    total = report.voices[ALL]
    assert total.recordings_wer is not None
    assert total.reconstructions_wer is not None
    assert total.shuffled_wer is not None
    assert total.recordings_wer.units > 20
    assert total.recordings_wer.rate <= 0.1
    assert total.reconstructions_wer.rate <= 0.4
    assert total.shuffled_wer.rate >= 0.7


@pytest.mark.slow
def test_the_voices_are_heard_in_the_reconstructions(measured: Measured) -> None:
    report, _ = measured
    right = [clip.identified_speaker == clip.voice for clip in report.clips]
    assert report.voices[ALL].speaker_accuracy == np.mean(right)
    assert report.voices[VOICE].speaker_accuracy == 1  # which the codec was trained on most
    for voice in CODED:
        own = [clip.identified_speaker == voice for clip in report.clips if clip.voice == voice]
        assert report.voices[voice].speaker_accuracy == np.mean(own)


@pytest.mark.slow
def test_reconstructions_are_the_recordings_in_length_and_order(
    measured: Measured, recordings: list[Recording]
) -> None:
    report, decoded = measured
    assert [clip.name for clip in report.clips] == [item.name for item in recordings]
    for clip, audio, item in zip(report.clips, decoded, recordings, strict=True):
        assert audio.shape == item.waveform.shape
        assert audio.dtype == np.float32
        assert clip.seconds == pytest.approx(len(audio) / RATE, abs=1e-3)
        own = mel_distance(audio, item.waveform, RATE)
        assert clip.mel_distance_db == pytest.approx(own, abs=1e-3)
        others = [
            mel_distance(audio[:n], other.waveform[:n], RATE)
            for other in recordings
            if other is not item and (n := min(len(audio), len(other.waveform)))
        ]
        assert own < min(others)


@pytest.mark.slow
def test_levels_count_all_codes(measured: Measured, codec: Codec) -> None:
    report, decoded = measured
    frames = sum(-(-len(audio) // codec.frame_samples) for audio in decoded)
    assert [level.codes for level in report.levels] == [frames, 2 * frames, 4 * frames]
    for level in report.levels:
        assert level.size == codec.codebook_size
        assert 1 < level.perplexity <= level.used <= min(level.codes, level.size)


@pytest.mark.slow
def test_the_seed_is_all_that_differs(codec: Codec) -> None:
    """Noise, shuffling and bootstrap intervals are drawn from it; speeds are the machine's."""
    recordings = [
        Recording(clip.id, read_clip(clip), "one two", "v") for clip in clips_of(VOICE)[:2]
    ]

    def run(seed: int) -> tuple[CodecReport, list[Waveform]]:
        asr = Told(["one two", "one"], ["one", "two two"], ["", ""])
        report, _ = measure_codec(codec, "small", recordings, asr=asr, seed=seed)
        return report, [clip for clips in asr.clips[1:] for clip in clips]

    (first, played), (again, same), (_, others) = run(3), run(3), run(4)
    assert untimed(first) == untimed(again)
    assert first.seed == 3
    assert first.encode_realtime > 0
    assert first.decode_realtime > 0
    assert len(played) == 4
    for one, two, other in zip(played, same, others, strict=True):
        np.testing.assert_array_equal(one, two)
        assert not np.array_equal(one, other)


# The figures


def test_rates_are_those_of_each_voice_and_of_all() -> None:
    recordings = [
        noisy("a1", "one two three four", "a"),
        noisy("b1", "five six", "b"),
        noisy("a2", "seven eight", "a"),
    ]
    asr = Told(
        ["one two three", "five six", "seven eight"],
        ["one two", "five nine", "seven eight"],
        ["", "", "nine nine nine"],
    )
    report = measure(recordings, asr)
    assert list(report.voices) == [ALL, "a", "b"]
    for voice, clips, recorded, made, control in (
        ("a", 2, 1 / 6, 2 / 6, 7 / 6),
        ("b", 1, 0, 1 / 2, 1),
        (ALL, 3, 1 / 8, 3 / 8, 9 / 8),
    ):
        result = report.voices[voice]
        assert result.clips == clips
        assert result.recordings_wer is not None
        assert result.reconstructions_wer is not None
        assert result.wer_difference is not None
        assert result.shuffled_wer is not None
        assert result.recordings_wer.rate == pytest.approx(recorded)
        assert result.reconstructions_wer.rate == pytest.approx(made)
        assert result.wer_difference.difference == pytest.approx(made - recorded)
        assert result.shuffled_wer.rate == pytest.approx(control)
        assert result.recordings_wer.utterances == result.wer_difference.utterances == clips
    assert report.asr == "told"
    assert report.clips[1].recording_transcript == "five six"
    assert report.clips[1].reconstruction_transcript == "five nine"
    # What was played to the ASR is what the columns are named after.
    played, rebuilt, control_clips = asr.clips
    for item, original, copy, shuffled in zip(
        recordings, played, rebuilt, control_clips, strict=True
    ):
        np.testing.assert_array_equal(original, item.waveform)
        np.testing.assert_array_equal(copy, item.waveform)
        assert not np.array_equal(shuffled, item.waveform)
        np.testing.assert_array_equal(np.sort(shuffled), np.sort(item.waveform))


def test_a_perfect_codec_has_no_distance(recordings: list[Recording]) -> None:
    item = recordings[0]
    assert mel_distance(item.waveform, item.waveform, RATE) == 0
    report = measure([noisy("a", voice="v"), noisy("b", voice="v")])
    assert [clip.mel_distance_db for clip in report.clips] == [0, 0]
    assert report.voices["v"].mel_distance_db == 0


def test_more_recordings_than_a_batch_keep_their_order() -> None:
    recordings = [noisy(str(i), n=600 + i) for i in range(code_usage.BATCH + 3)]
    pcm: Any = PcmCodec()
    report, decoded = measure_codec(pcm, "pcm", recordings)
    assert [clip.name for clip in report.clips] == [item.name for item in recordings]
    for audio, item in zip(decoded, recordings, strict=True):
        np.testing.assert_array_equal(audio, item.waveform)


@pytest.mark.slow
def test_voices_that_cannot_be_heard_are_wrong_and_unknown_ones_left_out(
    profiles: SpeakerProfiles,
) -> None:
    clip = clips_of(VOICE)[-1]
    known = Recording(clip.id, read_clip(clip), clip.text, clip.speaker)
    silent = Recording("silent", np.zeros(RATE, np.float32), None, VOICE)
    stranger = Recording("stranger", known.waveform, None, "nobody")
    unnamed = Recording("unnamed", known.waveform)
    report = measure([known, silent, stranger, unnamed], profiles=profiles)
    assert [clip.identified_speaker for clip in report.clips] == [VOICE, "", VOICE, VOICE]
    assert report.voices[VOICE].speaker_accuracy == 0.5
    assert report.voices["nobody"].speaker_accuracy is None
    assert report.voices[ALL].speaker_accuracy == 0.5


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="no recordings"):
        measure([])
    with pytest.raises(ValueError, match="'all'"):
        measure([noisy("a", voice=ALL)])
