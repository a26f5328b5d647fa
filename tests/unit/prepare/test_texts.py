"""Texts against transcripts: another recording's text is rejected, an ASR's slip is not."""

import json

import pytest

from helpers.example import DEMO
from sheen.prepare.texts.matching import TextLimits, check_text
from sheen.scoring.wer import normalize_english

LIMITS = TextLimits()
PROMPT = "Press one for sales or two for support"


def published() -> list[str]:
    lines = [
        line for path in sorted(DEMO.glob("*.jsonl")) for line in path.read_text().splitlines()
    ]
    return sorted({json.loads(line)["text"] for line in lines})


def test_texts_exchanged_among_recordings_are_rejected_and_their_own_are_good() -> None:
    texts = published()
    assert len(texts) > 100
    moved = [*texts[7:], *texts[:7]]
    found = [check_text(text, other, LIMITS) for text, other in zip(texts, moved, strict=True)]
    rejected = sum(check.verdict == "rejected" for check in found)
    assert rejected >= 0.98 * len(texts)
    assert all(check.verdict != "good" for check in found)
    assert all(check_text(text, text.lower(), LIMITS).verdict == "good" for text in texts)


def test_numbers_are_the_same_written_and_spoken() -> None:
    text, heard = (
        "The train leaves at 5:30 p.m. and costs $24.99.",
        ("the train leaves at five thirty pm and costs twenty four dollars and ninety nine cents"),
    )
    assert check_text(text, heard, LIMITS).verdict != "good"
    assert check_text(text, heard, LIMITS, normalize_english).verdict == "good"


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
    check = check_text(text, heard, LIMITS)
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
