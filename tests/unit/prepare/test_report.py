"""The account of a preparation, the order of doubtful rows, and both pages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.pages import HOSTILE, Page, assert_self_contained
from sheen.audio.samples import Samples
from sheen.prepare.cutting import EDGE, PAUSE, QUIETEST
from sheen.prepare.report import (
    CLIP_RATE,
    account,
    doubtful_first,
    render_corrections,
    render_report,
)

Row = dict[str, Any]


def row(name: str, **fields: Any) -> Row:
    base: Row = {
        "id": name, "audio": "/raw/long.mp3", "start": 1.0, "end": 4.0, "seconds": 3.0,
        "text": "Nothing tastes better than bread.", "speaker": "ann", "language": "en",
        "speech_seconds": 2.5, "level_db": -12.0, "start_at": PAUSE, "end_at": PAUSE,
        "cuts_unchecked": 0,
        "avg_logprob": -0.3, "no_speech_prob": 0.01, "compression_ratio": 0.9, "unsure_words": [],
        "checked": None, "reason": None, "detail": None, "heard": None, "cer": None,
        "text_doubtful": None, "loudness_lufs": -20.0, "snr_db": 30.0, "bandwidth_hz": 8000.0,
        "upsampled": False, "clipped_per_second": 0.0, "dnsmos": None, "overlap": None,
    }  # fmt: skip
    return base | fields


ROWS = [
    row("plain"),
    row("forced", end_at=QUIETEST, cuts_unchecked=1, unsure_words=["bread"]),
    row("unsure", avg_logprob=-0.9),
    row("checked", avg_logprob=-2.0, checked="good"),
    row("rejected", reason="repeats itself", detail=HOSTILE, text=HOSTILE),
    row("short", reason="too short", detail="1.0 s", text=None, end_at=EDGE, avg_logprob=None),
]
SOURCES = [
    {"audio": "/raw/long.mp3", "seconds": 36.0, "fault": "decoding failed after 36.00 s: damaged"},
    {"audio": "/raw/other.mp3", "seconds": None, "fault": None},
]
REPORT = {"asr": "an ASR"} | account(SOURCES, {".txt": 2}, ROWS)


def read(rows: Sequence[Row]) -> list[Samples]:
    return [np.zeros(CLIP_RATE // 4, np.float32) for _ in rows]


def test_every_second_is_accounted_for() -> None:
    assert REPORT["hours_in"] * 3600 == pytest.approx(36.0)
    assert REPORT["hours_out"] * 3600 == pytest.approx(12.0)
    assert REPORT["hours_rejected"] * 3600 == pytest.approx(6.0)
    assert REPORT["hours_between"] * 3600 == pytest.approx(18.0)
    assert {reason: entry["rows"] for reason, entry in REPORT["rejects"].items()} == {
        "repeats itself": 1, "too short": 1,
    }  # fmt: skip
    assert REPORT["speakers"] == {"ann": {"rows": 4, "hours": pytest.approx(12 / 3600)}}
    assert (REPORT["ends_in_pause"], REPORT["ends_in_speech"]) == (7, 1)
    assert REPORT["ends_unchecked"] == 1
    assert REPORT["incomplete"] == {"/raw/long.mp3": SOURCES[0]["fault"]}


def test_the_doubtful_come_first_and_what_was_checked_last() -> None:
    told = {row["id"]: found for row, found in doubtful_first(ROWS)}
    assert list(told) == ["forced", "unsure", "plain", "rejected", "checked"]
    assert told["plain"] == []
    assert told["forced"] == ["cut within speech", "unsure of bread"]
    assert told["unsure"] == ["the ASR is unsure"]


@pytest.mark.slow
def test_the_report_plays_what_was_rejected_and_what_is_doubtful() -> None:
    html = render_report(REPORT, ROWS, read, f"Preparation of {HOSTILE}")
    assert_self_contained(html)
    page = Page(html)
    assert HOSTILE in page.text
    assert "The ASR" not in page.text
    for shown in ("12 s (33.3%)", "repeats itself", "too short", "damaged", "cut within speech"):
        assert shown in page.text
    # Two that are rejected, two of the speaker, four that are kept.
    assert len(page.attributes("src", "audio")) == 8


def test_without_any_row_there_are_still_pages() -> None:
    report = {"asr": None} | account(SOURCES, {}, [])
    assert "No segment can be used." in Page(render_report(report, [], read, "x")).text
    assert "No row has a transcript." in Page(render_corrections([], read, "x", 5)).text


def test_the_page_for_corrections_shows_as_many_rows_as_asked() -> None:
    html = render_corrections(ROWS, read, HOSTILE, 4)
    page = Page(html)
    assert page.attributes("id", "article") == [
        "forced", "unsure", "plain", "rejected",
    ]  # fmt: skip
    assert "1 more rows are not on this page" in page.text
    assert HOSTILE in page.text
    assert all(uri.startswith("data:audio/mpeg;base64,") for uri in page.attributes("src"))
