"""The statistics of a preparation, the order of doubtful rows, and both pages."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from helpers.pages import HOSTILE, Page, assert_self_contained
from sheen.audio.samples import Samples
from sheen.prepare.cutting.cut import EDGE, PAUSE, QUIETEST
from sheen.prepare.inputs import recordings_of_corpus
from sheen.prepare.rejections.reasons import TEXT_DIFFERS
from sheen.prepare.report.pages import (
    CLIP_RATE,
    _differing_texts,
    _hours_blocks,
    render_corrections,
    render_report,
)
from sheen.prepare.report.statistics import differing, doubtful_first, statistics_of
from sheen.report.page import Table

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
TEXTS = [
    row("near", heard="no", cer=0.4, text_doubtful=True, reason=TEXT_DIFFERS, detail="0.4"),
    row("fits", heard="yes", cer=0.0, text_doubtful=False),
    row("far", heard="nothing", cer=0.9, text_doubtful=True, reason=TEXT_DIFFERS, detail="0.9"),
    row("mute", heard="", text_doubtful=True, reason=TEXT_DIFFERS, detail="none"),
    row("odd", heard="maybe", cer=0.2, text_doubtful=True),
]
SOURCES = [
    {"audio": "/raw/long.mp3", "seconds": 36.0, "fault": "decoding failed after 36.00 s: damaged"},
    {"audio": "/raw/other.mp3", "seconds": None, "fault": None},
]
REPORT = {"asr": "an ASR"} | statistics_of(SOURCES, {".txt": 2}, ROWS)


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


def test_texts_that_differ_come_before_all_other_doubts_the_worst_first() -> None:
    rows = [*TEXTS, *ROWS]
    told = [row["id"] for row, _ in doubtful_first(rows)]
    assert told[:2] == ["odd", "forced"]
    assert [name for name in told if name in ("near", "far", "mute")] == ["mute", "far", "near"]
    assert statistics_of(SOURCES, {}, rows)["rejects"][TEXT_DIFFERS]["examples"] == [
        "mute: none", "far: 0.9", "near: 0.4",
    ]  # fmt: skip
    (beside,) = _differing_texts(sorted(rows, key=differing))
    assert isinstance(beside, Table)
    assert [(cells[0], cells[1], cells[3]) for cells in beside.rows] == [
        ("mute", "", ""), ("far", "0.9000", "nothing"), ("near", "0.4000", "no"),
    ]  # fmt: skip


def test_recordings_in_one_file_count_as_what_they_are() -> None:
    inside = [
        row(f"r{n}", key=n, container="parquet_row", place=[0, n], reason="silent" if n else None)
        for n in range(3)
    ]
    inside.append(inside[0] | {"start": 5.0, "end": 8.0})
    sources = recordings_of_corpus(inside, [])
    report = statistics_of(sources, {}, inside)
    assert (report["recordings"], report["recordings_used"]) == (3, 1)
    assert report["hours_between"] == pytest.approx(0)


def test_recordings_that_are_whole_segments_have_no_pauses_between_them() -> None:
    # A row's seconds are rounded, here up.
    whole = [row(f"r{n}", seconds=1.2346) for n in range(3)]
    sources = [{**SOURCES[0], "seconds": 1.23456, "channels": 1} for _ in whole]
    report = {"asr": None} | statistics_of(sources, {}, whole)
    assert report["hours_between"] == 0
    facts = _hours_blocks(report)[0]
    assert isinstance(facts, Table)
    assert ("pauses between segments", "0 s (0.0%)") in facts.rows


@pytest.mark.slow
def test_the_report_plays_what_was_rejected_and_what_is_doubtful() -> None:
    rows = [*TEXTS, *ROWS]
    report = {"asr": "an ASR"} | statistics_of(SOURCES, {}, rows)
    report["corrections_not_applied"] = ["corrections.jsonl:1: of another text"]
    html = render_report(report, rows, read, f"Preparation of {HOSTILE}")
    assert_self_contained(html)
    page = Page(html)
    assert HOSTILE in page.text
    assert "The ASR" not in page.text
    for shown in (
        "18 s (50.0%)", "repeats itself", "too short", "damaged", "cut within speech",
        "2.0 words, 13.2 characters", "corrections.jsonl:1: of another text",
        "Overlapping speech: not measured (--overlap).",
    ):  # fmt: skip
        assert shown in page.text
    # Of all rows: also of those that the limit rejected.
    assert re.search(
        r"CER of the text against the transcript \(--max-cer\)[^<]*from 0 to 0\.9", html
    )
    # Four that are rejected, two of the speaker, six that are kept.
    assert len(page.attributes("src", "audio")) == 12


def test_without_any_row_there_are_still_pages() -> None:
    report = {"asr": None} | statistics_of(SOURCES, {}, [])
    assert "No segment can be used." in Page(render_report(report, [], read, "x")).text
    assert "No row has a transcript." in Page(render_corrections([], read, "x", 5)).text


def test_the_page_for_corrections_shows_each_id_once() -> None:
    """The browser keeps what was done by it."""
    again = [row | {"reason": "duplicate id", "detail": "of the input"} for row in ROWS]
    page = Page(render_corrections([*again, *ROWS], read, "x", 100))
    found = page.attributes("id", "article")
    assert sorted(found) == sorted(row["id"] for row in ROWS if row["text"] is not None)
    assert "not on this page" not in page.text


def test_the_page_for_corrections_shows_as_many_rows_as_asked() -> None:
    html = render_corrections(ROWS, read, HOSTILE, 4)
    page = Page(html)
    assert page.attributes("id", "article") == [
        "forced", "unsure", "plain", "rejected",
    ]  # fmt: skip
    assert "1 more rows are not on this page" in page.text
    assert HOSTILE in page.text
    assert all(uri.startswith("data:audio/mpeg;base64,") for uri in page.attributes("src"))
