"""The page at `/`, with which a person tries a voice: one answer that needs nothing from elsewhere.

Owns how the files of `web/` become one document, and the headers that bind it: only this script and
this style run, and they may speak only with this server. What the page does: `web/page.js`.
"""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from string import Template

from fastapi.responses import HTMLResponse

SCRIPTS = ("playback.js", "waveform.js", "page.js")
"""In the order in which they need each other."""


def page_response() -> HTMLResponse:
    """The page. Its addresses are relative: it works under any route prefix."""
    html, headers = _page()
    return HTMLResponse(html, headers=headers)


@cache
def _page() -> tuple[str, dict[str, str]]:
    style = web_file("page.css")
    script = "".join(map(web_file, SCRIPTS))
    html = Template(web_file("page.html")).substitute(style=style, script=script)
    return html, own_headers(style=style, script=script)


def web_file(name: str) -> str:
    """A text of the folder `web`."""
    return files("sheen.serve").joinpath("web", name).read_text("utf-8")


def own_headers(*, style: str, script: str | None = None) -> dict[str, str]:
    """Headers of a page that may use this style and script, all between their tags, which is what
    the browser hashes; and nothing else."""
    policy = {
        "default-src": "'none'",
        "script-src": "'none'" if script is None else _source(script),
        "style-src": _source(style),
        "connect-src": "'self'",
        "media-src": "'self' blob:",
        "img-src": "'self' data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "X-Frame-Options": "DENY",
        "Cache-Control": "no-cache",
    }


def _source(text: str) -> str:
    """This inline text, as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
