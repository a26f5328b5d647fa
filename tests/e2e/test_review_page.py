"""The page for corrections in a headless Chromium: heard, corrected, kept, saved."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.browser import CHROMIUM, Browser
from helpers.pages import HOSTILE
from sheen.prepare.corrections import read_corrections
from sheen.report.review import ReviewRow, render_review

pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason=f"needs {CHROMIUM}, to drive the page"
)
TEXTS = ["Hello there.", "Too late", HOSTILE, "Never mind."]
PLAYED = """(() => {
  const player = document.querySelectorAll('audio')[1];
  return !player.paused || player.ended;
})()"""


def test_a_person_listens_corrects_and_downloads(browser: Browser, tmp_path: Path) -> None:
    tone = 0.2 * np.sin(np.arange(24_000) / 8).astype(np.float32)
    rows = [
        ReviewRow(f"a/b-{place} ü", text, "unsure", False, tone, 24_000)
        for place, text in enumerate(TEXTS)
    ]
    path = tmp_path / "review.html"
    path.write_text(render_review("Segments", rows, 0), "utf-8")
    page = browser.open(path.as_uri())
    assert page.text("#count") == "0 of 4 checked"
    assert page.evaluate("document.querySelector('#save').disabled")
    assert page.evaluate("[...document.querySelectorAll('textarea')].map(t => t.value)") == TEXTS

    page.evaluate("document.querySelectorAll('article')[0].focus()")
    page.press("Enter")  # good, and the next one plays
    page.until("document.querySelector('#count').textContent === '1 of 4 checked'")
    assert page.evaluate(PLAYED)
    page.evaluate("document.querySelectorAll('textarea')[1].select()")
    page.type("Two, late.")
    page.press("Enter")  # leaves the text for the next row
    page.evaluate(
        "document.activeElement.dispatchEvent(new KeyboardEvent('keydown',"
        " { key: 'x', bubbles: true }))"
    )
    assert page.text("#count") == "3 of 4 checked"

    # It survives the page.
    with browser.expecting("Page.loadEventFired"):
        page.call("Page.reload")
    assert page.text("#count") == "3 of 4 checked"
    assert page.evaluate("document.querySelectorAll('textarea')[1].value") == "Two, late."
    assert page.evaluate(
        "[...document.querySelectorAll('article')].map(row => row.dataset.state)"
    ) == ["good", "corrected", "wrong", ""]

    (tmp_path / "saved").mkdir()
    saved = page.download("#save", tmp_path / "saved")
    assert [json.loads(line) for line in saved.read_text("utf-8").splitlines()] == [
        {"id": "a/b-0 ü", "was": "Hello there.", "verdict": "good"},
        {"id": "a/b-1 ü", "was": "Too late", "text": "Two, late."},
        {"id": "a/b-2 ü", "was": HOSTILE, "verdict": "wrong"},
    ]
    assert len(read_corrections(str(saved))) == 3
    assert not page.errors()
