"""The page on which a person checks transcripts: hear, correct, call good or wrong, download.

One file that asks the network for nothing. Its script keeps what was done in the browser's storage
at once, under the page's rows, and saves it as JSON lines of corrections: `id`, `was` (the text
that the page showed), and `text` or `verdict`. Owns the markup and the script; knows no job.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import jinja2

from sheen.audio.encoders import AudioEncoder
from sheen.audio.samples import Samples


@dataclass(frozen=True, eq=False)
class ReviewRow:
    """`audio` `[n]` at `sample_rate`, Hz. `note` says why the row is worth hearing."""

    id: str
    text: str
    note: str
    rejected: bool
    audio: Samples
    sample_rate: int


def render_review(title: str, rows: Sequence[ReviewRow], left: int) -> str:
    """The page as HTML, all text in it escaped; `left`: rows that it does not show."""
    script = _read("review.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Another page, or a page with other texts, has another key in the browser's storage.
    key = hashlib.sha256(json.dumps([(row.id, row.text) for row in rows]).encode()).hexdigest()
    return _template().render(
        title=title, rows=rows, left=left, script=script, digest=digest, key=key[:16]
    )


def mp3_uri(row: ReviewRow) -> str:
    """The clip as MP3, which every browser plays, in a data URI."""
    encoder = AudioEncoder("mp3", row.sample_rate, whole=True)
    data = encoder.push(row.audio) + encoder.finish()
    return f"data:audio/mpeg;base64,{base64.b64encode(data).decode()}"


@cache
def _read(name: str) -> str:
    return resources.files("sheen.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(mp3_uri=mp3_uri)
    return environment.from_string(_read("review.html.j2"))
