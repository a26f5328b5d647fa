"""The HTML page of a report: sections of text, tables, figures and clips, in one file.

A page is a list of sections, a section a list of blocks, and a block is a paragraph (a plain
string) or what `table`, `figures.curves`, `figures.bars`, `figures.histogram` and
`clips.clip_row` return. The file asks the network for nothing and runs no script.

This module owns the markup and the writing of the file. It computes nothing and knows no job.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import jinja2
import numpy as np

from sheen.report.clips import HOW_TO_READ, ClipRow, audio_uri
from sheen.report.figures import Plot, format_numbers, svg_uri
from sheen.storage import files

Cell = str | float | np.number[Any] | None


@dataclass(frozen=True)
class Table:
    """Formatted cells; `numeric[j]` says that column j holds numbers, to be set flush right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    kind: ClassVar[str] = "table"


Block = str | Plot | ClipRow | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it. Neighbouring figures and tables share a line."""

    title: str
    blocks: Sequence[Block]


def table(header: Sequence[str], rows: Sequence[Sequence[Cell]], title: str = "") -> Table:
    """A table whose first column names the rows; an empty `header` suits a list of facts.

    Strings are shown as they are. A column of numbers is set flush right with one count of
    decimals; None leaves a cell empty. Raises ValueError for a row of another length than the
    header (or than the first row, without a header).
    """
    width = len(header) or (len(rows[0]) if rows else 0)
    for number, row in enumerate(rows):
        if len(row) != width:
            raise ValueError(f"table {title!r}: row {number} has {len(row)} cells, not {width}")
    columns = [[row[j] for row in rows] for j in range(width)]
    numeric = [bool(rows) and all(map(_is_number_or_none, column)) for column in columns]
    texts = [_format(*pair) for pair in zip(columns, numeric, strict=True)]
    return Table(title, list(header), list(zip(*texts, strict=True)), numeric)


def render_page(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """The page as HTML, all text in it escaped; `lead` is a paragraph under the title."""
    return _template().render(title=title, lead=lead, sections=sections)


def write_page(
    path: str | os.PathLike[str], title: str, sections: Sequence[Section], lead: str = ""
) -> None:
    """Write the page to `path`, whole or not at all. The folder must exist."""
    files.write_bytes(os.fspath(path), render_page(title, sections, lead).encode())


def _is_number_or_none(value: Cell) -> bool:
    return isinstance(value, int | float | np.number | None) and not isinstance(value, bool)


def _format(column: Sequence[Cell], numeric: bool) -> list[str]:
    if not numeric:
        return ["" if value is None else str(value) for value in column]
    numbers: list[Any] = [value for value in column if value is not None]
    texts = iter(format_numbers(numbers))
    return ["" if value is None else next(texts) for value in column]


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(audio_uri=audio_uri, svg_uri=svg_uri)
    environment.globals.update(how_to_read=HOW_TO_READ)
    source = resources.files("sheen.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(source)
