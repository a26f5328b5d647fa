"""What is no material for training: short, silent, hallucinated, another recording's text; and what
is kept."""

import json

import pytest

from helpers.example import DEMO
from sheen.prepare.cutting.cut import CUT_OFF, PAUSE, CutSettings, Segment
from sheen.prepare.rejections.reasons import (
    Limits,
    TextLimits,
    check_text,
    language_fault,
    languages_of,
    segment_fault,
    transcript_fault,
    word_at,
)
from sheen.scoring.asr.transcript import Transcript, Word
from sheen.scoring.wer import normalize_english

LIMITS = Limits()
TEXT_LIMITS = TextLimits()
PROMPT = "Press one for sales or two for support"


def reason(text: str, seconds: float = 3.0, **measures: float) -> str | None:
    fault = transcript_fault(Transcript(text, **measures), seconds, LIMITS)
    return fault and fault[0]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Her voice was calm, although her hands were shaking.", 2.6),
        ("No, no, no, no.", 1.0),
        ("Thank you.", 0.6),
        ("我们昨天买了三张桌子", 2.4),
    ],
)
def test_segments_of_clear_speech_are_kept(text: str, seconds: float) -> None:
    assert reason(text, seconds, no_speech_prob=0.05, avg_logprob=-0.3) is None


def test_what_whisper_makes_of_noise_is_rejected() -> None:
    assert reason(" .", no_speech_prob=0.9, avg_logprob=-1.2) == "no words"
    assert reason("Thank you.", no_speech_prob=0.7, avg_logprob=-1.2) == "not speech"
    # One alone proves nothing.
    assert reason("Thank you.", no_speech_prob=0.7, avg_logprob=-0.4) is None
    assert reason("Thank you.", no_speech_prob=0.1, avg_logprob=-1.4) is None


def test_a_text_that_repeats_itself_is_rejected() -> None:
    sentence = "So I went to the shop and then I went to the shop. "
    assert reason(5 * sentence, 12.0) == "repeats itself"
    assert reason("you you you you you you", 2.0) == "repeats itself"


def test_a_text_of_another_length_than_its_speech_is_rejected() -> None:
    assert reason("Yes.", 8.0) == "implausible speech rate"
    assert reason("We measured the room twice before we ordered it.", 0.8) == (
        "implausible speech rate"
    )


def test_a_segment_that_is_short_or_silent_is_not_transcribed() -> None:
    def fault(seconds: float, level_db: float, end_at: str = PAUSE) -> str | None:
        segment = Segment(1.0, 1.0 + seconds, seconds, PAUSE, end_at, level_db)
        found = segment_fault(segment, CutSettings())
        return found and found[0]

    assert fault(3.0, -20.0) is None
    assert fault(1.5, -20.0) == "too short"
    assert fault(3.0, -65.0) == "silent"
    assert fault(3.0, -20.0, CUT_OFF) == "cut off"


def test_a_cut_within_a_word_is_found() -> None:
    words = [Word("fire", 0.2, 0.5), Word("station", 0.52, 1.1)]
    found = [word_at(words, at) for at in (0.1, 0.22, 0.35, 0.51, 0.8, 1.08, 2.0)]
    assert found == [None, None, "fire", None, "station", None, None]


def test_a_recording_is_of_the_language_that_most_of_it_is_surely_of() -> None:
    guesses = [
        ("a", "en", 0.9, 4.0),
        ("a", "de", 0.95, 3.0),
        ("a", "cy", 0.4, 60.0),
        ("b", "fr", 0.8, 1.0),
        ("c", "nn", 0.3, 5.0),
    ]
    languages = languages_of(guesses)
    assert languages == languages_of(guesses[::-1]) == {"a": "en", "b": "fr"}


def test_another_language_is_rejected() -> None:
    assert language_fault("en", "en", None) is None
    assert language_fault("de", None, None) is None
    assert language_fault(None, None, "en") is None
    for own, recording, asked in (("de", "en", None), ("en", "fr", "en")):
        fault = language_fault(own, recording, asked)
        assert fault is not None
        assert fault[0] == "another language"


def published() -> list[str]:
    lines = [
        line for path in sorted(DEMO.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return sorted({json.loads(line)["text"] for line in lines})


def test_texts_exchanged_among_recordings_are_rejected_and_their_own_are_good() -> None:
    texts = published()
    assert len(texts) > 100
    moved = [*texts[7:], *texts[:7]]
    found = [check_text(text, other, TEXT_LIMITS) for text, other in zip(texts, moved, strict=True)]
    rejected = sum(check.verdict == "rejected" for check in found)
    assert rejected >= 0.98 * len(texts)
    assert all(check.verdict != "good" for check in found)
    assert all(check_text(text, text.lower(), TEXT_LIMITS).verdict == "good" for text in texts)


def test_numbers_are_the_same_written_and_spoken() -> None:
    text, heard = (
        "The train leaves at 5:30 p.m. and costs $24.99.",
        ("the train leaves at five thirty pm and costs twenty four dollars and ninety nine cents"),
    )
    assert check_text(text, heard, TEXT_LIMITS).verdict != "good"
    assert check_text(text, heard, TEXT_LIMITS, normalize_english).verdict == "good"


@pytest.mark.parametrize(
    ("text", "heard", "verdict"),
    [
        (PROMPT, PROMPT.lower(), "good"),
        (PROMPT, "press nine for tales or you for a port", "doubtful"),
        (PROMPT, "the weather will be fine tomorrow", "rejected"),
        (PROMPT, "", "rejected"),
        ("Sorry.", "so", "doubtful"),  # one slip of the ASR
        ("Yes!", "...", "doubtful"),
        ("", "press one", "rejected"),
        ("— 😀", "press one", "rejected"),
    ],
)  # fmt: skip
def test_a_text_is_good_doubtful_or_rejected_by_its_character_error_rate(
    text: str, heard: str, verdict: str
) -> None:
    check = check_text(text, heard, TEXT_LIMITS)
    assert check.verdict == verdict
    assert (check.detail is None) == (verdict == "good")
    if check.cer is not None and check.detail is not None:
        assert repr(text) in check.detail
        assert repr(heard) in check.detail


def test_the_limits_of_the_error_rate_can_be_set() -> None:
    text, heard = "Press one for sales", "press one for sailing"
    assert check_text(text, heard, TextLimits(0.05, 0.0)).verdict == "rejected"
    assert check_text(text, heard, TextLimits(1.0, 1.0)).verdict == "good"
    with pytest.raises(ValueError, match=r"must be from 0 to that of rejected ones, 0\.1"):
        TextLimits(0.1, 0.2)
