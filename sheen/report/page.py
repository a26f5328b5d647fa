"""The HTML page of a report: sections of text, tables, figures and clips, in one file.

A page is a list of sections, a section a list of blocks, and a block is a paragraph (a plain
string) or what `table`, `clip_row` and `figures.curves`, `figures.bars`, `figures.histogram`
return. The file asks the network for nothing and runs no script.

Owns the markup, and how sound is shown: a player, the waveform and the mel spectrogram, with shared
axes, so that a row can be compared. It measures nothing, reads no recording, and knows no job.
"""

import base64
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, ClassVar

import jinja2
import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torchaudio.functional
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave
from matplotlib.transforms import Bbox

from sheen.audio.spectral import REPORT_BANDS, hz_to_mel, log_mel_db
from sheen.report.figures import COLORS, FONT_SIZE, IMAGE_DPI, Plot, format_numbers, style, svg_uri
from sheen.storage import files

INT16_FULL_SCALE = 32768
WAVEFORM_COLUMNS = 800  # about the pixels across a figure; bounds the size of the drawing
MEL_WINDOW = 0.04  # s, at least: it is rounded up to a power of two samples
DYNAMIC_RANGE = 80  # dB that the colors span, down from the loudest point of a row
# A row is drawn as if its loudest sound had at least this amplitude (-40 dB of full scale), for
# otherwise the dither of a silent recording would be blown up until it looks like sound.
LEAST_AMPLITUDE = 0.01
FREQUENCY_TICKS = (500, 1000, 2000, 4000, 8000, 16000)  # Hz
HOW_TO_READ = (
    "Of each clip: amplitude, and below it the mel spectrogram, whose colors span "
    f"{DYNAMIC_RANGE} dB down from the loudest point in the row. Clips side by side have the same "
    "axes and colors."
)


@dataclass(frozen=True, eq=False)
class Clip:
    """A sound with a name. The player clips samples beyond -1..1.

    audio: float32 [n], mono; n may be 0. sample_rate: Hz.
    Raises ValueError for any other shape or dtype, and for samples that are not finite.
    """

    title: str
    audio: npt.NDArray[np.float32]
    sample_rate: int
    caption: str = ""

    def __post_init__(self) -> None:
        clip = f"clip {self.title!r}"
        if not isinstance(self.audio, np.ndarray) or self.audio.dtype != np.float32:
            found = getattr(self.audio, "dtype", type(self.audio).__name__)
            raise ValueError(f"{clip}: audio must be a numpy array of float32, not {found}")
        if self.audio.ndim != 1:
            raise ValueError(f"{clip}: audio must have shape [n], not {list(self.audio.shape)}")
        if not np.isfinite(self.audio).all():
            raise ValueError(f"{clip}: audio has samples that are not finite")
        if self.sample_rate <= 0:
            raise ValueError(f"{clip}: sample_rate must be positive, not {self.sample_rate}")

    @property
    def seconds(self) -> float:
        return len(self.audio) / self.sample_rate

    @property
    def peak(self) -> float:
        return float(np.abs(self.audio).max(initial=0.0))


@dataclass(frozen=True, eq=False)
class ClipRow:
    """Clips side by side; `plots[i]` shows `clips[i]`, all on the same axes."""

    title: str
    clips: Sequence[Clip]
    plots: Sequence[Plot]
    kind: ClassVar[str] = "clips"


def clip_row(clips: Sequence[Clip], title: str = "") -> ClipRow:
    """Clips to compare, such as [recorded, synthesized].

    All share one time axis, amplitude axis, frequency axis and dB scale. The spectrograms are
    computed at the lowest sample rate in the row, for otherwise their mel bands would differ; what
    a clip of a higher rate holds above that Nyquist frequency can be heard but is not drawn.
    """
    if not clips:
        raise ValueError("a row of clips needs at least one clip")
    rate = min(clip.sample_rate for clip in clips)
    mels = [_mel_decibels(clip, rate) for clip in clips]
    seconds = max(clip.seconds for clip in clips) or 1.0
    peak = max(LEAST_AMPLITUDE, *(clip.peak for clip in clips))
    # What a sine of the least amplitude has under a Hann window, whose mean is one half.
    least_loud = 20 * math.log10(LEAST_AMPLITUDE * _window_length(rate) / 4)
    loudest = max(float(mel.max(initial=least_loud)) for mel in mels)
    plots = []
    for clip, mel in zip(clips, mels, strict=True):
        figure = Figure(figsize=(3.8, 2.7))
        # Fixed places, not a layout engine: the time axes of neighboring figures have to line up.
        waveform = figure.add_axes((0.13, 0.75, 0.85, 0.23))
        spectrogram = figure.add_axes((0.13, 0.15, 0.85, 0.56), sharex=waveform)
        style(waveform)
        style(spectrogram, "time (s)", "frequency (kHz)")
        _draw_waveform(waveform, clip)
        _draw_mel(spectrogram, mel - loudest, rate)
        waveform.set(xlim=(0, seconds), ylim=(-1.05 * peak, 1.05 * peak))
        waveform.set_yticks([-peak, 0, peak], [f"\N{MINUS SIGN}{peak:.2g}", "0", f"{peak:.2g}"])
        waveform.tick_params(labelbottom=False)
        alt = (
            f"Waveform and mel spectrogram of {clip.title}: "
            f"{clip.seconds:.2f} seconds, peak amplitude {clip.peak:.2f}."
        )
        plots.append(Plot(clip.title, figure, alt))
    return ClipRow(title, clips, plots)


def save_png(
    row: ClipRow, path: str | os.PathLike[str] | io.BytesIO, *, stacked: bool = False
) -> None:
    """Draw a row as one PNG, each clip under its title, for a page that plays nothing.

    The clips stand side by side, or with `stacked` one above the other, their time axes in line.
    A folder in `path` must exist.
    """
    images = []
    for clip, plot in zip(row.clips, row.plots, strict=True):
        # Above the figure, and only here: elsewhere a title is text next to it.
        title = plot.figure.text(0.5, 1.06, clip.title, ha="center", va="top", fontsize=FONT_SIZE)
        file = io.BytesIO()
        plot.figure.savefig(file, dpi=IMAGE_DPI, bbox_inches=Bbox([[-0.2, 0], [3.8, 2.95]]))
        title.remove()
        file.seek(0)
        images.append(imread(file))
    imsave(path, np.vstack(images) if stacked else np.hstack(images), format="png")


def audio_uri(clip: Clip) -> str:
    """The clip as 16-bit FLAC (half the size of WAV, and browsers play it) in a data URI."""
    scaled = np.rint(clip.audio.astype(np.float64) * INT16_FULL_SCALE)
    samples = scaled.clip(-INT16_FULL_SCALE, INT16_FULL_SCALE - 1).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, clip.sample_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(file.getvalue()).decode()}"


def _mel_decibels(clip: Clip, rate: int) -> npt.NDArray[np.float32]:
    """Mel spectrogram [REPORT_BANDS, frames] in dB at `rate` Hz; no frames for an empty clip."""
    if not len(clip.audio):
        return np.zeros((REPORT_BANDS, 0), np.float32)
    audio = torch.tensor(np.ascontiguousarray(clip.audio))
    audio = torchaudio.functional.resample(audio, clip.sample_rate, rate)
    # Filters of equal height, under which the noise of a room is as dark in every band.
    return log_mel_db(audio.numpy(), rate, _window_length(rate), norm=None)


def _window_length(rate: int) -> int:
    return int(2 ** math.ceil(math.log2(MEL_WINDOW * rate)))


def _draw_waveform(axes: Axes, clip: Clip) -> None:
    """Draw the lowest and highest sample of each column of pixels, not every sample."""
    if not len(clip.audio):
        return
    columns = min(len(clip.audio), WAVEFORM_COLUMNS)
    edges = np.linspace(0, len(clip.audio), columns + 1).astype(np.int64)
    low = np.minimum.reduceat(clip.audio, edges[:-1])
    high = np.maximum.reduceat(clip.audio, edges[:-1])
    times = (edges[:-1] + edges[1:]) / 2 / clip.sample_rate
    axes.fill_between(times, low, high, facecolor=COLORS[0], edgecolor=COLORS[0], linewidth=0.6)


def _draw_mel(axes: Axes, decibels: npt.NDArray[np.float32], rate: int) -> None:
    """Draw [REPORT_BANDS, frames] on an axis that is linear in mel and labeled in kHz."""
    # Centers of the bands divide 0..Nyquist, in mel, into equal steps.
    step = hz_to_mel(rate / 2) / (REPORT_BANDS + 1)
    bottom, top = 0.5 * step, (REPORT_BANDS + 0.5) * step
    if decibels.size:
        hop = _window_length(rate) / 4 / rate
        axes.imshow(
            decibels,
            cmap="magma",
            vmin=-DYNAMIC_RANGE,
            vmax=0,
            aspect="auto",
            origin="lower",
            extent=(-0.5 * hop, (decibels.shape[1] - 0.5) * hop, bottom, top),
        )
    axes.set_ylim(bottom, top)
    ticks = [hertz for hertz in FREQUENCY_TICKS if hertz <= rate / 2]
    axes.set_yticks([hz_to_mel(hertz) for hertz in ticks], [f"{hertz / 1000:g}" for hertz in ticks])


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
    """A heading and its blocks. Consecutive figures and tables share a line."""

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
