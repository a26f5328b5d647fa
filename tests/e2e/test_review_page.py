"""The page for corrections in a headless Chromium: heard, corrected, kept, saved."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.browser import CHROMIUM, Browser, Page
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


COUNT = "document.querySelector('#count').textContent"


def review(folder: Path, texts: list[str]) -> str:
    """The address of a page of rows with these texts."""
    tone = 0.2 * np.sin(np.arange(24_000) / 8).astype(np.float32)
    rows = [
        ReviewRow(f"a/b-{place} ü", text, "unsure", False, tone, 24_000)
        for place, text in enumerate(texts)
    ]
    path = folder / "review.html"
    path.write_text(render_review("Segments", rows, 0), "utf-8")
    return path.as_uri()


def hit(page: Page, selector: str, key: str, **fields: object) -> None:
    """A key as the browser tells of it, with what no key of this test's would have."""
    event = json.dumps({"key": key, "bubbles": True, "cancelable": True, **fields})
    page.evaluate(
        f"{{ const one = document.querySelector({selector!r}); one.focus();"
        f" one.dispatchEvent(new KeyboardEvent('keydown', {event})); }}"
    )


def test_a_person_listens_corrects_and_downloads(browser: Browser, tmp_path: Path) -> None:
    page = browser.open(review(tmp_path, TEXTS))
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


@pytest.mark.parametrize("composing", [{"isComposing": True}, {"keyCode": 229}])
def test_the_enter_of_an_input_method_does_not_leave_the_text(
    browser: Browser, tmp_path: Path, composing: dict[str, object]
) -> None:
    page = browser.open(review(tmp_path, ["こんにちは", "さようなら"]))
    hit(page, "textarea", "Enter", **composing)
    assert page.evaluate("document.activeElement === document.querySelector('textarea')")


def test_a_key_that_is_held_decides_on_one_row(browser: Browser, tmp_path: Path) -> None:
    page = browser.open(review(tmp_path, TEXTS))
    for key in ("Enter", "x"):
        hit(page, "article", key, repeat=True)
    assert page.evaluate(COUNT) == "0 of 4 checked"
    hit(page, "article", "ArrowDown", repeat=True)
    assert page.evaluate("document.activeElement.id") == "a/b-1 ü"


def test_a_row_without_a_text_cannot_be_good(browser: Browser, tmp_path: Path) -> None:
    """The prepare job would refuse the whole file."""
    page = browser.open(review(tmp_path, ["", "Two."]))
    page.click("article:nth-of-type(1) [value=good]")
    assert page.evaluate(COUNT) == "0 of 2 checked"
    assert page.evaluate("document.activeElement === document.querySelector('textarea')")
    assert page.evaluate("document.querySelector('textarea').validationMessage")
    page.type("One.")
    page.click("article:nth-of-type(1) [value=good]")
    page.click("article:nth-of-type(2) [value=good]")
    assert page.evaluate(COUNT) == "2 of 2 checked"
    page.evaluate("document.querySelectorAll('textarea')[1].select()")
    page.type(" ")
    assert page.evaluate(COUNT) == "1 of 2 checked"
    page.click("article:nth-of-type(2) [value=wrong]")
    (tmp_path / "saved").mkdir()
    saved = page.download("#save", tmp_path / "saved")
    assert [json.loads(line) for line in saved.read_text("utf-8").splitlines()] == [
        {"id": "a/b-0 ü", "was": "", "text": "One.", "verdict": "good"},
        {"id": "a/b-1 ü", "was": "Two.", "verdict": "wrong"},
    ]


def test_two_tabs_do_not_undo_each_others_corrections(browser: Browser, tmp_path: Path) -> None:
    url = review(tmp_path, TEXTS)
    one = browser.open(url)
    two = browser.open(url, beside=one)
    two.evaluate("document.querySelectorAll('textarea')[1].select()")
    two.type("Two, late.")
    one.until(f"{COUNT} === '1 of 4 checked'")
    assert one.evaluate("document.querySelectorAll('textarea')[1].value") == "Two, late."
    one.click("article:nth-of-type(1) [value=good]")
    with browser.expecting("Page.loadEventFired"):
        two.call("Page.reload")
    assert two.evaluate(COUNT) == "2 of 4 checked"


def test_a_browser_that_keeps_nothing_is_told_of(browser: Browser, tmp_path: Path) -> None:
    page = browser.open("about:blank")
    page.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="Object.defineProperty(window, 'localStorage', { get() {"
        " throw new DOMException('Access is denied for this document.', 'SecurityError'); } })",
    )
    with browser.expecting("Page.loadEventFired"):
        page.call("Page.navigate", url=review(tmp_path, TEXTS))
    page.click("article:nth-of-type(1) [value=good]")
    assert page.evaluate(COUNT) == (
        "1 of 4 checked. This browser does not keep it: download before you leave the page."
    )
    assert not page.errors()


def test_what_is_saved_stays_until_the_browser_has_read_it(
    browser: Browser, tmp_path: Path
) -> None:
    """Safari reads it after the click."""
    page = browser.open(review(tmp_path, TEXTS))
    page.click("[value=good]")
    assert (
        page.evaluate("""(() => {
      let revoked = false;
      URL.revokeObjectURL = () => { revoked = true; };
      document.querySelector('#save').click();
      return revoked;
    })()""")
        is False
    )
