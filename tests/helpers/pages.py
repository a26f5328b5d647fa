"""HTML pages as a browser reads them."""

import re
from html.parser import HTMLParser

HOSTILE = '<script>alert("1")</script> & $x_1$ \'"'


class Page(HTMLParser):
    """The tags, with their attributes, and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, name: str, tag: str | None = None) -> list[str]:
        return [a[name] or "" for t, a in self.tags if name in a and tag in (None, t)]


def links(html: str) -> list[str]:
    page = Page(html)
    return [uri for name in ("src", "href") for uri in page.attributes(name)]


def assert_self_contained(html: str) -> None:
    """Every link stays in the page, and no address stands anywhere else in it."""
    assert all(link.startswith(("data:", "#section-")) for link in links(html))
    # Not in the data: base64 may spell anything by chance.
    markup = re.sub('data:[^";]*;base64,[^"]*', "", html)
    assert "http" not in markup.replace("http-equiv", "")
    assert "//" not in markup
