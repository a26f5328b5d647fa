"""Figures for reports: curves, bars and histograms, drawn so that a page of any color fits them.

This module owns the look of a figure and its way into a page. It knows nothing about sound
and writes no HTML (both are `sheen.report.page`'s).

Figures are built on `matplotlib.figure.Figure`, without pyplot and without touching `rcParams`, so
several threads may draw at once.
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

# Each has a contrast of at least 3:1 with a white and with a near-black page.
COLORS = ("#3987e5", "#d9742b", "#1f9e77", "#b56bd0", "#b08419", "#808b96")
GRAY = "#8b949e"
FONT_SIZE = 8  # points; a figure is about 4 inches wide, so this survives a phone's width
IMAGE_DPI = 160  # of what inside an SVG is pixels: spectrograms and very long curves
MAX_PATH_POINTS = 5_000  # a longer curve makes a smaller file as pixels than as a path
# matplotlib writes black text without a color, which leaves it to this style sheet.
SVG_STYLE = (
    '<style>[id^="text_"]{fill:#424a53}'
    '@media(prefers-color-scheme:dark){[id^="text_"]{fill:#b1bac4}}</style>'
)

Grid = Literal["x", "y", "both"]
Series = tuple[npt.ArrayLike, npt.ArrayLike]


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure, and in `alt` the words that stand in for it when it cannot be seen."""

    title: str
    figure: Figure
    alt: str
    kind: ClassVar[str] = "plot"


def curves(
    title: str, series: Mapping[str, Series], xlabel: str, ylabel: str, log_y: bool = False
) -> Plot:
    """Lines in one figure, such as losses over steps. A series is (x, y), each of shape [n].

    A y that is NaN leaves a gap. Raises ValueError if x and y differ in shape, or if `log_y` meets
    a value <= 0.
    """
    figure = Figure(figsize=(4.5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=COLORS)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    style(axes, xlabel, ylabel, grid="both")
    lines, ends = [], []
    for name, (x_like, y_like) in series.items():
        x, y = np.asarray(x_like, np.float64), np.asarray(y_like, np.float64)
        if x.ndim != 1 or x.shape != y.shape:
            shapes = f"{list(x.shape)} and {list(y.shape)}"
            raise ValueError(f"curve {name!r}: x and y must have one shape [n], not {shapes}")
        if log_y and (y <= 0).any():
            raise ValueError(f"curve {name!r}: a log axis cannot show values <= 0")
        # A line through one point would draw nothing.
        marker = "o" if len(x) == 1 else ""
        lines += axes.plot(x, y, marker=marker, lw=1.4, rasterized=len(x) > MAX_PATH_POINTS)
        ends.append(f"{name} from {y[0]:.4g} to {y[-1]:.4g}" if len(y) else f"{name} empty")
    if len(lines) > 1:
        axes.legend(lines, [_plain(name) for name in series], frameon=False, fontsize=FONT_SIZE)
    return Plot(title, figure, f"{title}: {ylabel} over {xlabel}; {', '.join(ends)}.")


def bars(title: str, values: Mapping[str, float], xlabel: str) -> Plot:
    """Horizontal bars with their values written out, first at the top. Values: finite, >= 0."""
    lengths = _finite(title, list(values.values()))
    if (lengths < 0).any():
        raise ValueError(f"{title!r}: bars cannot show values < 0")
    places = np.arange(len(values))
    figure = Figure(figsize=(4.5, 0.6 + 0.28 * max(len(values), 1)), layout="constrained")
    axes = figure.add_subplot()
    style(axes, xlabel, grid="x")
    # Few ticks: long names leave little width, and every bar has its number.
    axes.xaxis.set_major_locator(MaxNLocator(3))
    shapes = axes.barh(places, lengths, height=0.62, color=COLORS[0])
    texts = format_numbers(lengths)
    axes.bar_label(shapes, texts, padding=3, fontsize=FONT_SIZE)
    axes.margins(x=0.14, y=0.02)  # room for the number at the end of the longest bar
    axes.set_yticks(places, [_plain(name) for name in values])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    words = ", ".join(f"{name} {text}" for name, text in zip(values, texts, strict=True))
    return Plot(title, figure, f"{title}, {xlabel}: {words}.")


def histogram(title: str, values: npt.ArrayLike, xlabel: str, bins: int = 30) -> Plot:
    """How many values fall into each of `bins` equal intervals. values: [n], finite; n may be 0."""
    numbers = _finite(title, values)
    counts, edges = np.histogram(numbers, bins)
    spread = f", from {numbers.min():.4g} to {numbers.max():.4g}" if len(numbers) else ""
    return _draw_counts(title, edges, counts, xlabel, spread)


def counted_histogram(title: str, edges: npt.ArrayLike, counts: npt.ArrayLike, xlabel: str) -> Plot:
    """A histogram of values that were counted elsewhere. edges: [n + 1], rising; counts: [n].

    Raises ValueError for another number of edges, or edges that do not rise.
    """
    bounds, heights = _finite(title, edges), _finite(title, counts)
    if len(bounds) != len(heights) + 1 or (np.diff(bounds) <= 0).any():
        raise ValueError(
            f"{title!r}: {len(heights)} counts need one more edge, each above the last"
        )
    spread = f", from {bounds[0]:.4g} to {bounds[-1]:.4g}"
    return _draw_counts(title, bounds, heights, xlabel, spread)


def _draw_counts(
    title: str, edges: npt.NDArray[Any], counts: npt.NDArray[Any], xlabel: str, spread: str
) -> Plot:
    figure = Figure(figsize=(4.5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    style(axes, xlabel, "count", grid="y")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    axes.bar(middles, counts, 0.92 * widths, color=COLORS[0])
    alt = f"{title}: histogram of {counts.sum()} values, {xlabel}{spread}."
    return Plot(title, figure, alt)


def style(axes: Axes, xlabel: str = "", ylabel: str = "", grid: Grid | None = None) -> None:
    """The look that all axes share."""
    axes.set_xlabel(_plain(xlabel), fontsize=FONT_SIZE)
    axes.set_ylabel(_plain(ylabel), fontsize=FONT_SIZE)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set(color=GRAY, linewidth=0.8)
    axes.tick_params(which="both", labelsize=FONT_SIZE, color=GRAY, width=0.8, length=3)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    # Not 1e4 in a corner for steps, and not math text, whose parser threads must not share.
    axes.xaxis.set_major_formatter("{x:,.10g}")
    axes.yaxis.set_major_formatter("{x:,.10g}")
    if grid is not None:
        axes.grid(True, axis=grid, color=GRAY, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)


def svg_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI; its text turns light on a dark page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", dpi=IMAGE_DPI, facecolor="none", metadata={"Date": None})
    head, end, tail = file.getvalue().rpartition("</svg>")
    svg = f"{head}{SVG_STYLE}{end}{tail}".encode()
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def format_numbers(values: npt.ArrayLike) -> list[str]:
    """Numbers [n] as text with one count of decimals, so that they line up when set flush right.

    The largest value gets four significant digits, integers get all of theirs.
    """
    numbers = np.asarray(values)
    if not numbers.size or np.issubdtype(numbers.dtype, np.integer):
        return [f"{number:,d}" for number in numbers]
    largest = np.abs(numbers[np.isfinite(numbers)]).max(initial=0.0)
    decimals = int(np.clip(3 - np.floor(np.log10(largest or 1.0)), 0, 9))
    return [f"{number:,.{decimals}f}" for number in numbers]


def _finite(title: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        raise ValueError(f"{title!r}: values must be finite numbers of shape [n]")
    return numbers


def _plain(text: str) -> str:
    """Text for matplotlib that it does not take for a formula."""
    return text.replace("$", r"\$")
