"""The encode job's page: the facts are on it, it says what deserves a look, text is no markup."""

from pathlib import Path
from typing import Any

import pytest

from helpers.encoded_rows import encoded, rejected, report_of, write
from helpers.pages import Page, assert_self_contained
from sheen.encode.report import findings, render
from sheen.encode.statistics import RunTimes
from sheen.report.figures import counted_histogram

HOSTILE = '<script>alert("1")</script> & $x_1$'


def page_of(report: dict[str, Any]) -> Page:
    html = render(report, "Encoding")
    assert_self_contained(html)
    return Page(html)


def text_of(report: dict[str, Any]) -> str:
    """The page's words, one blank between them."""
    return " ".join(Page(render(report, "Encoding").replace("<", " <")).text.split())


def fine(folder: Path, count: int = 400) -> str:
    """An hour of rows in which nothing stands out."""
    rows = [encoded(n, 9.0 + n % 3, "a text of twenty-some", speaker="kal") for n in range(count)]
    return write(folder, "encoded", rows)


@pytest.fixture
def report(tmp_path: Path) -> dict[str, Any]:
    """Of 400 encoded and 100 rejected recordings."""
    fine(tmp_path)
    bad = [rejected(n, "missing" if n < 480 else "too long", 45.0) for n in range(400, 500)]
    return report_of(write(tmp_path, "rejected", bad))


def test_the_encode_page_says_what_happened(report: dict[str, Any]) -> None:
    page = page_of(report)
    text = text_of(report)
    assert "400 of 500 recordings are encoded: 2.4 h of speech in, 1.1 h out. 100 rejected." in text
    assert "100 recordings (20.00%), 1.2 h of it decoded" in text
    for fact in ("missing 80 16.00%", "too long 20 4.00%"):
        assert fact in text
    for number in (400, 404, 480, 484):  # the first five of each reason
        assert f"clip-{number} list.jsonl:{number + 1}: why {number}" in text
    assert "clip-405" not in text
    assert "0 400 1 8 12.5% 1.000 0.000" in text  # level 0: one code of 8
    assert "kal 400 1.111" in text
    assert "9.0 to 11.0 s, at most 11.0 s" in text
    for fact in ("audio hours per hour 2.5", "workers had rows 3.5", "of their time 10.0%"):
        assert fact in text
    figures = page.attributes("alt", "img")
    assert len(figures) == 3
    assert "read 0.500, decode 2.000, resample 1.000, encode 6.000, write 0.250" in figures[2]
    assert "histogram of 400 values, s, from 0 to 11" in figures[0]
    assert "histogram of 400 values, characters of text per second" in figures[1]


def test_the_lead_and_the_first_section_give_the_verdict(
    report: dict[str, Any], tmp_path: Path
) -> None:
    page = render(report, "Encoding")
    lead = page[page.index('class="lead"') :]
    assert lead.startswith('class="lead">3 things deserve a look.')
    assert lead.index("20.0% of the recordings were rejected, most of them as") < lead.index(
        'id="section-2"'
    )
    text = text_of(report_of(fine(tmp_path / "good", 1)))
    assert "Nothing stands out. 1 of 1 recordings are encoded: 9.0 s of speech in" in text
    assert "None rejected." in text
    assert "No recording was rejected." in text


def test_spread_rates_unused_codes_and_waiting_are_findings(tmp_path: Path) -> None:
    assert findings(report_of(fine(tmp_path / "fine", 10))) == []
    spread = [encoded(n, 10.0, "a" * (10 if n % 3 else 100)) for n in range(9)]
    (found,) = findings(report_of(write(tmp_path / "spread", "encoded", spread)))
    assert "5% are below 1.0, 5% above 10.0 characters per second" in found
    # 160 codes could have used each of the 8 twenty times.
    few, enough = (report_of(fine(tmp_path / str(count), count)) for count in (159, 160))
    assert not any("Level 0" in found for found in findings(few))
    assert any("Level 0 uses 1 of 8 codes" in found for found in findings(enough))
    waited = RunTimes(8.0, {}, 4.0, 2, 20.0, None, 4)
    (found,) = findings(report_of(fine(tmp_path / "waited", 1), waited))
    assert "waited for 25% of their time while rows were queued" in found


def test_a_few_rejected_rows_are_no_finding(tmp_path: Path) -> None:
    rows = [encoded(n, 10.0, snac_codes=[list(range(8))]) for n in range(99)]
    write(tmp_path, "encoded", rows)
    report = report_of(write(tmp_path, "rejected", [rejected(99, "missing")]))
    assert findings(report) == []
    assert "1 rejected." in text_of(report)


def test_a_page_of_nothing_encoded_says_so(tmp_path: Path) -> None:
    text = text_of(report_of(write(tmp_path, "rejected", [rejected(0, "missing")])))
    assert "2 things deserve a look. 0 of 1 recordings are encoded" in text
    assert "Nothing was encoded." in text


def test_the_page_of_a_run_that_had_nothing_to_do_says_so(tmp_path: Path) -> None:
    done = RunTimes(0.5, {}, None, 2, 0.0, None, 0)
    page = page_of(report_of(fine(tmp_path, 3), done))
    assert "This run had nothing left to do" in page.text
    assert "waited" not in page.text
    assert len(page.attributes("alt", "img")) == 2


def test_shifts_and_outliers_are_told(tmp_path: Path) -> None:
    rows = [encoded(n, 10.0) for n in range(50)]
    rows += [row | {"id": f"{row['id']}~1"} for row in rows]
    report = report_of(write(tmp_path, "encoded", [*rows, encoded(50, 4000.0)]))
    page = page_of(report)
    assert "51 of 51 recordings are encoded as 101 utterances, shifts included" in page.text
    assert "s (1 beyond are not shown)" in page.attributes("alt", "img")[0]


def test_the_page_shows_few_of_many_speakers(tmp_path: Path) -> None:
    rows = [encoded(n, 200.0 - n, speaker=f"voice-{n:03}") for n in range(60)]
    text = text_of(report_of(write(tmp_path, "encoded", [*rows, encoded(60, 500.0)])))
    assert "(none named)" in text
    assert "voice-048" in text
    assert "voice-049" not in text
    assert "And 11 speakers with less" in text


def test_text_is_never_markup(tmp_path: Path) -> None:
    write(tmp_path, "encoded", [encoded(0, 1.0, HOSTILE, id=HOSTILE, speaker=HOSTILE)])
    bad = rejected(1, HOSTILE, id=HOSTILE, source=HOSTILE, detail=HOSTILE)
    report = report_of(write(tmp_path, "rejected", [bad]))
    page = Page(render(report, HOSTILE))
    assert "script" not in {tag for tag, _ in page.tags}
    # title, h1; the finding; by reason; reason, id, source and detail of the example; the speaker
    assert page.text.count(HOSTILE) == 2 + 1 + 1 + 4 + 1


def test_counted_histograms_draw_the_counts() -> None:
    plot = counted_histogram("Lengths", [0, 1, 3], [2, 5], "s")
    bars = plot.figure.axes[0].patches
    assert [bar.get_height() for bar in bars] == [2, 5]  # type: ignore[attr-defined]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]  # type: ignore[attr-defined]
    assert middles == pytest.approx([0.5, 2.0])
    assert plot.alt == "Lengths: histogram of 7 values, s, from 0 to 3."
    for edges in ([0, 1], [0, 1, 1], [0, 2, 1]):
        with pytest.raises(ValueError, match="2 counts need one more edge"):
            counted_histogram("Lengths", edges, [2, 5], "s")
