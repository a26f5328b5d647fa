"""How good synthesized speech is: figures counted by hand, and a report that shows all of them."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from helpers.example import RATE
from helpers.pages import HOSTILE, Page, assert_self_contained
from helpers.word_pairs import HYPOTHESES, REFERENCES
from sheen.scoring.mos import Mos
from sheen.scoring.reports import (
    Waveform,
    render_speech_report,
    speech_json,
    speech_rows,
    worst_first,
)
from sheen.scoring.speaker_id import ALL
from sheen.scoring.speech import Sound, SpeechReport, SpokenClip, measure_sound, score_speech, share
from sheen.scoring.wer import normalize_english, normalize_words, rate_of_each, ratio_interval


def tone(seconds: float, rate: int = RATE, amplitude: float = 0.5) -> Waveform:
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def quiet(seconds: float, rate: int = RATE) -> Waveform:
    return np.zeros(round(seconds * rate), np.float32)


def noise(seconds: float, decibels: float) -> Waveform:
    """So far under a tone."""
    level = 0.5 / np.sqrt(2) * 10 ** (-decibels / 20)
    draws = np.random.default_rng(0).normal(size=round(seconds * RATE))
    return (level * draws).astype(np.float32)


def clip(
    name: str,
    text: str = "one two",
    voice: str | None = "v",
    *,
    seconds: float = 1.0,
    speaking: float = 0.8,
    clipped: float = 0.0,
    ended_with_eos: bool = True,
    expected: float | None = 1.0,
    transcript: str | None = None,
    identified_speaker: str | None = None,
    **scores: Any,
) -> SpokenClip:
    sound = Sound(seconds, speaking, 0.1, clipped)
    return SpokenClip(
        name, voice, text, ended_with_eos, sound, expected, transcript, identified_speaker, **scores
    )


def judge(*clips: SpokenClip, **arguments: Any) -> SpeechReport:
    return score_speech(clips, **({"asr": "told"} | arguments))


# One clip


@pytest.mark.parametrize("rate", [8000, 22050, 24000, 44100])
def test_silence_is_measured_at_the_ends_and_in_between(rate: int) -> None:
    parts = [quiet(0.5, rate), tone(1.0, rate), quiet(0.3, rate), tone(0.4, rate), quiet(0.2, rate)]
    sound = measure_sound(np.concatenate(parts), rate)
    assert sound.seconds == pytest.approx(2.4)
    assert sound.speaking == pytest.approx(1.7)
    assert sound.pause == pytest.approx(0.3)
    assert sound.silence == pytest.approx(0.7 / 2.4)
    assert sound.clipped == 0


def test_the_longest_pause_counts() -> None:
    parts = [tone(0.1), quiet(0.1), tone(0.1), quiet(0.3), tone(0.1), quiet(0.2), tone(0.1)]
    sound = measure_sound(np.concatenate(parts), RATE)
    assert sound.pause == pytest.approx(0.3)
    assert sound.silence == pytest.approx(0.0)


@pytest.mark.parametrize("gain", [2.0, 0.1, 0.01])
def test_the_level_of_a_clip_does_not_change_its_pauses(gain: float) -> None:
    whole = np.concatenate([quiet(0.4), tone(0.6), quiet(0.2), tone(0.6)])
    soft = measure_sound((gain * whole).astype(np.float32), RATE)
    assert (soft.speaking, soft.pause) == pytest.approx((1.4, 0.2))


@pytest.mark.parametrize(("under", "pause"), [(50, 0.3), (30, 0.0)])
def test_what_is_far_under_the_loudest_is_a_pause(under: float, pause: float) -> None:
    sound = measure_sound(np.concatenate([tone(0.4), noise(0.3, under), tone(0.4)]), RATE)
    assert sound.pause == pytest.approx(pause)


@pytest.mark.parametrize("waveform", [quiet(0.5), noise(0.5, 90)])
def test_a_silent_clip_is_all_silence(waveform: Waveform) -> None:
    sound = measure_sound(waveform, RATE)
    assert sound == Sound(0.5, 0.0, 0.0, 0.0)
    assert sound.silence == 1.0


def test_an_empty_clip_is_silent() -> None:
    sound = measure_sound(quiet(0), RATE)
    assert sound == Sound(0.0, 0.0, 0.0, 0.0)
    assert sound.silence == 1.0


def test_a_clip_may_end_within_a_frame() -> None:
    waveform = np.full(1234, 0.5, np.float32)
    sound = measure_sound(waveform, RATE)
    assert sound.speaking == sound.seconds == 1234 / RATE
    assert measure_sound(waveform[:7], RATE).speaking == 7 / RATE


def test_samples_at_full_scale_are_clipped() -> None:
    waveform = tone(1.0)
    waveform[:12], waveform[12:24], waveform[24:36] = 1.0, -1.5, 0.999
    assert measure_sound(waveform, RATE).clipped == pytest.approx(24 / RATE)


# Shares, means and errors


@pytest.mark.parametrize(
    ("count", "of", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (1, 1, 0.2065, 1.0),
        (980, 1000, 0.9693, 0.9870),
    ],
)
def test_shares_have_the_interval_of_wilson(count: int, of: int, low: float, high: float) -> None:
    found = share(count, of)
    assert (found.count, found.of, found.rate) == (count, of, count / of)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert 0.0 <= found.low <= found.high <= 1.0


def test_resamples_of_many_utterances_are_those_that_are_drawn_one_by_one() -> None:
    """Which are drawn some hundreds at a time. To the bit: reports that were kept stay true."""
    errors, units = np.random.default_rng(0).random((2, 1500))
    draws = np.random.default_rng(3)
    rates = []
    for _ in range(400):
        drawn = draws.integers(1500, size=1500)
        rates.append(errors[drawn].sum() / units[drawn].sum())
    low, high = np.percentile(rates, (2.5, 97.5))
    assert ratio_interval(errors, units, 3, 400) == (low, high)


def test_the_interval_of_a_ratio_is_about_the_ratio_of_the_sums() -> None:
    ones = np.ones(20)
    assert ratio_interval(0.7 * ones, ones) == pytest.approx((0.7, 0.7))
    # The ratio of the sums, not the mean of ratios: all of it lies in the long utterances.
    long = np.array([100.0] * 10 + [1.0] * 10)
    wrong = np.array([50.0] * 10 + [0.0] * 10)
    low, high = ratio_interval(wrong, long, seed=1)
    assert 0.47 < low < wrong.sum() / long.sum() < high < 0.5
    assert ratio_interval(wrong, long, seed=1) == (low, high)


def test_the_rate_of_each_is_errors_over_its_own_units() -> None:
    rates = rate_of_each("word", REFERENCES, HYPOTHESES)
    words = [len(normalize_words(text).split()) for text in REFERENCES]
    errors = [rate * count for rate, count in zip(rates, words, strict=True)]
    assert errors == pytest.approx([1, 1, 1, 0, 3])
    assert rate_of_each("character", ["abcd"], ["abxd"]) == [0.25]


# Many clips

THREE = [
    clip(
        "a1",
        "one two three four",
        "a",
        transcript="one two three",
        identified_speaker="a",
        seconds=2.0,
    ),
    clip(
        "b1",
        "five six",
        "b",
        transcript="five nine",
        identified_speaker="a",
        expected=2.0,
        ended_with_eos=False,
        clipped=0.0009,
    ),
    clip(
        "a2", "seven eight", "a", transcript="Seven, eight.", identified_speaker="a", clipped=0.001
    ),
]


def test_figures_are_those_of_each_voice_and_of_all() -> None:
    report = judge(*THREE, enrolled=("a", "b"), seed=5)
    assert (report.clips, report.asr, report.seed) == (THREE, "told", 5)
    assert report.clip_wer == [1 / 4, 1 / 2, 0]
    assert list(report.voices) == ["a", "b", ALL]
    for voice, clips, seconds, words, letters, ended, right, clipped, duration, pace in (
        ("a", 2, 3.0, 1 / 6, 5 / 29, 1, 1, 1 / 2, 1.5, (18 + 11) / 2 / 0.8),
        ("b", 1, 1.0, 1 / 2, 3 / 8, 0, 0, 0, 0.5, 8 / 0.8),
        (ALL, 3, 4.0, 2 / 8, 8 / 37, 2 / 3, 2 / 3, 1 / 3, 3.5 / 3, 37 / 3 / 0.8),
    ):
        result = report.voices[voice]
        assert (result.clips, result.seconds) == (clips, seconds)
        assert result.wer is not None
        assert result.cer is not None
        assert result.speaker_accuracy is not None
        assert result.duration is not None
        assert result.characters_per_second is not None
        assert result.wer.rate == pytest.approx(words)
        assert result.cer.rate == pytest.approx(letters)
        assert result.ended_with_eos.rate == pytest.approx(ended)
        assert result.speaker_accuracy.rate == pytest.approx(right)
        assert result.clipped.rate == pytest.approx(clipped)
        assert result.duration.value == pytest.approx(duration)
        assert result.characters_per_second.value == pytest.approx(pace)
        assert result.pause.value == pytest.approx(0.1)
    assert report.voices["b"].silence.value == pytest.approx(0.2)
    assert report.voices["a"].silence.value == pytest.approx((1.2 / 2 + 0.2) / 2)


def test_a_single_voice_needs_no_name() -> None:
    report = judge(
        clip("x", voice=None, transcript="one two"), clip("y", voice=None, transcript="one")
    )
    assert list(report.voices) == [ALL]
    assert report.voices[ALL].clips == 2


def test_clips_without_a_transcript_have_no_error_rates() -> None:
    report = judge(clip("x", expected=None), clip("y", "...", expected=None), asr=None)
    result = report.voices[ALL]
    assert report.clip_wer == [None, None]
    assert result.wer is result.cer is result.speaker_accuracy is result.duration is None
    assert result.dnsmos_ovrl is result.speaker_similarity is result.unscored is None
    assert result.ended_with_eos.of == 2


def test_voices_that_nobody_knows_are_left_out_and_lost_ones_are_wrong() -> None:
    report = judge(
        clip("x", voice="v", identified_speaker="v"),
        clip("lost", voice="v", identified_speaker=""),
        clip("stranger", voice="w", identified_speaker="v"),
        enrolled=("v",),
        asr=None,
    )
    assert report.voices["w"].speaker_accuracy is None
    assert report.voices["v"].speaker_accuracy == report.voices[ALL].speaker_accuracy == share(1, 2)


def test_scores_of_the_sound_are_means_over_the_clips_that_have_them() -> None:
    report = judge(
        clip("x", identified_speaker="v", speaker_similarity=0.9, dnsmos=Mos(3.0, 3.4, 4.0)),
        clip("y", identified_speaker="w", speaker_similarity=0.5, dnsmos=Mos(2.0, 3.2, 3.0)),
        clip("z", identified_speaker="", unscored="the clip is too short"),
        clip("s", voice="w", identified_speaker="w", dnsmos=Mos(4.0, 4.0, 4.0)),
        enrolled=("v",),
        asr=None,
    )
    result = report.voices["v"]
    assert result.speaker_similarity is not None
    assert result.dnsmos_ovrl is not None
    assert result.dnsmos_sig is not None
    assert result.dnsmos_bak is not None
    assert result.speaker_similarity.value == pytest.approx(0.7)
    assert result.dnsmos_ovrl.low == 2.0
    assert result.dnsmos_ovrl.high == 3.0
    moses = result.dnsmos_ovrl.value, result.dnsmos_sig.value, result.dnsmos_bak.value
    assert moses == pytest.approx((2.5, 3.3, 3.5))
    # What is too short to score is no clip of another voice that was overlooked: it is wrong.
    assert (result.unscored, result.speaker_accuracy) == (share(1, 3), share(1, 3))
    assert report.voices["w"].speaker_similarity is None
    assert report.voices[ALL].unscored == share(1, 4)


@pytest.mark.slow
def test_what_is_silent_has_no_pace() -> None:
    silent = clip("x", speaking=0.0, transcript="")
    report = judge(silent, clip("y", transcript="one two"))
    pace = report.voices[ALL].characters_per_second
    assert pace is not None
    assert pace.value == pytest.approx(len("one two") / 0.8)
    assert judge(silent).voices[ALL].characters_per_second is None
    assert judge(silent).voices[ALL].silence.value == 1.0


def test_a_duration_that_is_not_to_be_expected_is_left_out() -> None:
    report = judge(clip("x", seconds=3.0), clip("y", expected=None))
    duration = report.voices[ALL].duration
    assert duration is not None
    assert (duration.value, duration.low, duration.high) == (3.0, 3.0, 3.0)


def test_both_sides_are_normalized_before_words_are_counted() -> None:
    heard = clip("x", "It costs twenty four dollars.", transcript="it costs $24")
    for normalize, errors, words in ((normalize_english, 0, 4), (str, 3, 5)):
        report = judge(heard, normalize=normalize)
        found = report.voices[ALL].wer
        assert found is not None
        assert (found.errors, found.units) == (errors, words)
        assert report.clip_wer == [errors / words]
        assert report.clips[0].text == heard.text  # the page shows what was asked for


@pytest.mark.slow
def test_intervals_are_drawn_from_the_seed() -> None:
    clips = [
        clip(str(i), seconds=0.5 + i / 7, speaking=0.3, transcript="one two" if i % 3 else "one")
        for i in range(12)
    ]
    first, others = judge(*clips, seed=1), [judge(*clips, seed=seed) for seed in range(2, 6)]
    assert judge(*clips, seed=1) == first
    result = first.voices[ALL]
    for name in ("wer", "duration", "silence"):
        drawn = getattr(result, name)
        same = [getattr(other.voices[ALL], name) for other in others]
        assert any((other.low, other.high) != (drawn.low, drawn.high) for other in same)
        middle = "rate" if name == "wer" else "value"
        assert {getattr(other, middle) for other in same} == {getattr(drawn, middle)}
        assert drawn.low < getattr(drawn, middle) < drawn.high


def test_clips_that_nobody_heard_are_left_out_of_the_errors() -> None:
    """As those of texts without words, of which no share can be wrong."""
    report = judge(clip("x", "..."), clip("y", transcript="one"), clip("z", voice="w"))
    assert report.clip_wer == [None, 1 / 2, None]
    words = report.voices[ALL].wer
    assert words is not None
    assert (words.errors, words.units, words.utterances) == (1, 2, 1)
    assert report.voices["v"].wer == words
    assert report.voices["w"].wer is None
    assert (report.voices[ALL].clips, report.voices[ALL].ended_with_eos.of) == (3, 3)
    assert worst_first(report)[0] == 1


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="no clips"):
        judge()
    with pytest.raises(ValueError, match="holds no words"):
        judge(clip("x", "...", transcript="one"))
    with pytest.raises(ValueError, match="'all'"):
        judge(clip("x", voice=ALL, transcript="one"))


# The report


def test_the_table_is_one_row_a_voice() -> None:
    report = judge(
        clip(
            "x",
            transcript="one",
            identified_speaker="v",
            speaker_similarity=0.876,
            dnsmos=Mos(3.0, 3.4, 4.0),
            expected=2.0,
            ended_with_eos=False,
        ),
        enrolled=("v",),
    )
    assert speech_rows(report) == (
        [
            "voice",
            "clips",
            "WER",
            "CER",
            "DNSMOS OVRL",
            "DNSMOS SIG",
            "DNSMOS BAK",
            "speaker accuracy",
            "speaker similarity",
            "too short to score",
            "ended with EOS",
            "duration / expected",
            "characters per second",
            "silence at the ends",
            "longest pause, s",
            "clipped",
        ],
        [
            [
                voice,
                "1",
                "50.0% [50.0%, 50.0%]",
                "57.1% [57.1%, 57.1%]",
                "3.00 [3.00, 3.00]",
                "3.40 [3.40, 3.40]",
                "4.00 [4.00, 4.00]",
                "100.0% [20.7%, 100.0%]",
                "0.88 [0.88, 0.88]",
                "0.0% [0.0%, 79.3%]",
                "0.0% [0.0%, 79.3%]",
                "0.50 [0.50, 0.50]",
                "8.75 [8.75, 8.75]",
                "20.0% [20.0%, 20.0%]",
                "0.10 [0.10, 0.10]",
                "0.0% [0.0%, 79.3%]",
            ]
            for voice in ("v", ALL)
        ],
    )


def test_the_table_leaves_out_what_was_not_measured() -> None:
    header, rows = speech_rows(judge(clip("x", expected=None), asr=None))
    assert header[2] == "ended with EOS"
    assert "duration / expected" not in header
    # Of one voice only: its cell is empty.
    header, rows = speech_rows(
        judge(
            clip("x", voice="v", identified_speaker="v"),
            clip("y", voice="w", identified_speaker="v", expected=None),
            enrolled=("v",),
        )
    )
    (of_w,) = (dict(zip(header, row, strict=True)) for row in rows if row[0] == "w")
    assert of_w["speaker accuracy"] == of_w["duration / expected"] == ""
    assert of_w["clips"] == "1"


def test_the_worst_clips_come_first() -> None:
    """By words that are wrong, then cut ones, then those too long or too short."""
    heard = [
        clip("right", transcript="one two"),
        clip("half", transcript="one", expected=0.9),
        clip("quarter", "one two three four", transcript="one two three", ended_with_eos=False),
        clip("long", transcript="one two", seconds=3.0),
        clip("short", transcript="one two", seconds=0.2),
        clip("cut", transcript="one two", ended_with_eos=False),
        clip("unknown", transcript="one two", expected=None),
    ]
    report = judge(*heard)
    names = [heard[index].id for index in worst_first(report)]
    assert names[:5] == ["half", "quarter", "cut", "short", "long"]
    unheard = [clip("fine"), clip("odd", seconds=9.0), clip("cut", ended_with_eos=False)]
    order = worst_first(judge(*unheard, asr=None))
    assert [unheard[index].id for index in order] == ["cut", "odd", "fine"]


def test_a_clip_of_no_length_is_odder_than_any_other() -> None:
    clips = [clip("long", seconds=9.0), clip("none", seconds=0.0, speaking=0.0), clip("fine")]
    assert worst_first(judge(*clips, asr=None)) == [1, 0, 2]


def test_json_holds_the_results_and_what_they_are_of() -> None:
    def refuse(constant: str) -> None:  # NaN and the infinities
        raise AssertionError(f"{constant} is no JSON")

    report = judge(clip("x", voice="Åsa", speaking=0.0, transcript=""), seed=3)
    text = speech_json(report, {"prompts": 1, "config": {"seed": 3}})
    content = json.loads(text, parse_constant=refuse)
    assert (content["prompts"], content["config"]) == (1, {"seed": 3})
    assert (content["asr"], content["seed"]) == ("told", 3)
    assert list(content["voices"]) == ["Åsa", ALL]
    assert content["voices"]["Åsa"]["wer"]["rate"] == 1.0
    assert content["voices"]["Åsa"]["characters_per_second"] is None
    ended = content["voices"]["Åsa"]["ended_with_eos"]
    assert (ended["rate"], ended["count"], ended["of"]) == (1.0, 1, 1)
    assert (ended["low"], ended["high"]) == pytest.approx((0.2065, 1.0), abs=1e-4)
    assert "Åsa" in text


def page_of(report: SpeechReport, *worst: SpokenClip, lead: str = "A lead.") -> str:
    played = [(item, tone(0.2 + place / 10)) for place, item in enumerate(worst)]
    return render_speech_report(report, lead, played, RATE)


@pytest.mark.slow
def test_the_page_plays_the_given_clips_in_order() -> None:
    report = judge(*THREE, enrolled=("a", "b"))
    html = page_of(report, THREE[1], THREE[0])
    page = Page(html)
    assert_self_contained(html)
    assert "<title>Speech report</title>" in html
    assert page.attributes("aria-label", "audio") == ["Play b", "Play a"]
    assert page.text.index(
        "b1: 1.00 s, 2.00 s expected, cut off at its token limit"
    ) < page.text.index("a1: 2.00 s, 1.00 s expected, transcript: one two three, speaker: a")
    assert "a2:" not in page.text
    header, rows = speech_rows(report)
    for cell in (*header, *(cell for row in rows for cell in row)):
        assert cell in page.text
    for said in ("A lead.", "ASR: told", "five six", "Seed 0"):
        assert said in page.text


@pytest.mark.slow
def test_the_page_says_what_is_not_known() -> None:
    lost = clip("lost", voice=None, expected=None, transcript="", identified_speaker="")
    text = Page(page_of(judge(lost), lost)).text
    assert "lost: 1.00 s, transcript: nothing, speaker: none" in text
    scored = replace(lost, identified_speaker="v", speaker_similarity=0.5, dnsmos=Mos(3, 3, 3))
    said = "DNSMOS OVRL 3.00, speaker: v, similarity 0.50"
    text = Page(page_of(judge(scored), scored)).text
    assert said in text
    assert "1 for the voice's own recordings" in text
    assert "expected" not in text
    unheard = clip("quiet", voice=None)
    text = Page(page_of(judge(unheard, asr=None), unheard)).text
    assert "No ASR" in text
    assert "transcript:" not in text
    assert "Duration over the duration expected of the text" in text


@pytest.mark.slow
def test_a_page_without_clips_is_a_page() -> None:
    page = Page(page_of(judge(*THREE)))
    assert page.attributes("src", "audio") == []
    assert "By voice" in page.text


def test_texts_are_never_markup() -> None:
    hostile = clip(HOSTILE, HOSTILE, HOSTILE, transcript=HOSTILE, identified_speaker=HOSTILE)
    page = Page(page_of(judge(hostile, asr=HOSTILE), hostile, lead=HOSTILE))
    assert "script" not in {tag for tag, _ in page.tags}
    # lead; row of the table; asr; the clip's row, title and caption with id, transcript and speaker
    assert page.text.count(HOSTILE) == 1 + 1 + 1 + 1 + 1 + 3
