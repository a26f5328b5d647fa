"""Reports: what a reader plays and sees is what went in, in one safe, self-contained file."""

import base64
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from helpers.pages import HOSTILE, Page, assert_self_contained, links
from sheen.report.figures import bars, curves, format_numbers, histogram, svg_uri
from sheen.report.page import (
    LEAST_AMPLITUDE,
    Block,
    Clip,
    ClipRow,
    Section,
    clip_row,
    render_page,
    table,
    write_page,
)


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def sine(seconds: float, rate: int = 24000, hertz: float = 1000.0, amplitude: float = 0.5) -> Clip:
    times = np.arange(round(seconds * rate)) / rate
    audio = amplitude * np.sin(2 * np.pi * hertz * times)
    return Clip(f"{hertz:g} Hz", audio.astype(np.float32), rate)


def silence(samples: int) -> Clip:
    return Clip(f"{samples} samples", np.zeros(samples, np.float32), 24000)


def page_of(*blocks: Block) -> Page:
    return Page(render_page("A page", [Section("A section", blocks)]))


def decode(uri: str) -> tuple[npt.NDArray[np.float64], int]:
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
    return samples, rate


def mel_images(row: ClipRow) -> list[npt.NDArray[np.float32]]:
    """The drawn spectrograms [bands, frames], in dB below the loudest point of the row."""
    images = (plot.figure.axes[1].images[0] for plot in row.plots)
    return [np.asarray(image.get_array()) for image in images]


def everything(text: str) -> list[Block]:
    clip = Clip(text, sine(0.2).audio, 24000, caption=text)
    return [
        text,
        table([text, "n"], [(text, 1), (text, None)], title=text),
        clip_row([clip, clip], title=text),
        curves(text, {text: ([0, 1], [2, 1]), "other": ([0], [1])}, text, text),
        bars(text, {text: 1.5}, text),
        histogram(text, [1, 2, 2], text),
    ]


def test_text_is_never_markup() -> None:
    page = Page(render_page(HOSTILE, [Section(HOSTILE, everything(HOSTILE))], lead=HOSTILE))
    assert "script" not in {tag for tag, _ in page.tags}
    # title, h1, lead, h2; paragraph; 4 in the table; 1 + 2 * 2 in the clips; 3 figures
    assert page.text.count(HOSTILE) == 4 + 1 + 4 + 5 + 3
    for uri in page.attributes("src", "img"):
        ElementTree.fromstring(base64.b64decode(uri.partition("base64,")[2]))


@pytest.mark.slow
def test_page_asks_the_network_for_nothing() -> None:
    html = render_page("A page", [Section(f"Part {i}", everything("text")) for i in range(3)])
    # Of each section: 2 players, 5 figures; and the links to sections.
    assert len(links(html)) > 3 * 7
    assert_self_contained(html)


def test_every_figure_and_player_has_words() -> None:
    page = page_of(*everything("text"))
    assert len(page.attributes("alt", "img")) == len(page.attributes("src", "img")) == 5
    assert page.attributes("aria-label", "audio") == ["Play text"] * 2
    assert page.attributes("lang", "html") == ["en"]
    assert all(page.attributes("alt", "img"))


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
def test_players_hold_the_samples(rate: int) -> None:
    audio = np.random.default_rng(0).uniform(-1, 1, 2500).astype(np.float32)
    audio[:2] = [-1, 1]
    (uri,) = page_of(clip_row([Clip("noise", audio, rate)])).attributes("src", "audio")
    samples, played_rate = decode(uri)
    assert played_rate == rate
    np.testing.assert_allclose(samples, audio, rtol=0, atol=1 / 32768)


def test_player_clips_and_keeps_int16_samples_exactly() -> None:
    int16 = np.arange(-32768, 32768, 7, dtype=np.int16)
    audio = (int16 / 32768).astype(np.float32)
    clips = [
        Clip("exact", audio, 24000),
        Clip("too loud", np.array([3, -3], np.float32), 24000),
    ]
    exact, loud = page_of(clip_row(clips)).attributes("src", "audio")
    np.testing.assert_array_equal(decode(exact)[0] * 32768, int16)
    np.testing.assert_array_equal(decode(loud)[0] * 32768, [32767, -32768])


def test_clips_in_a_row_share_their_axes() -> None:
    row = clip_row([sine(0.5, 44100), sine(0.3, amplitude=0.05), silence(0), silence(24000)])
    waveforms, mels = zip(*(plot.figure.axes for plot in row.plots), strict=True)
    for axes in (*waveforms, *mels):
        assert axes.get_xlim() == (0, 1.0)
    assert len({axes.get_ylim() for axes in waveforms}) == 1
    assert waveforms[0].get_ylim() == pytest.approx((-0.525, 0.525), rel=1e-4)
    assert len({axes.get_ylim() for axes in mels}) == 1
    assert {image.get_clim() for axes in mels for image in axes.images} == {(-80, 0)}
    # Neighbouring figures line up only if the axes have the same place in each.
    assert len({axes.get_position().bounds for axes in mels}) == 1


def test_levels_compare_across_a_row() -> None:
    loud, quiet = mel_images(clip_row([sine(0.5, amplitude=0.5), sine(0.5, amplitude=0.05)]))
    assert loud.max() == 0
    assert quiet.max() == pytest.approx(-20, abs=0.1)


@pytest.mark.parametrize("rate", [16000, 24000])
@pytest.mark.parametrize("hertz", [500, 1000, 4000])
def test_a_tone_is_drawn_at_its_frequency(rate: int, hertz: int) -> None:
    """Beside a clip of another rate, too; the tick of 1 kHz is where 1 kHz is drawn."""
    row = clip_row([sine(0.5, rate, hertz), sine(0.5, 44100, hertz)])
    for plot, mel in zip(row.plots, mel_images(row), strict=True):
        axes = plot.figure.axes[1]
        bottom, top = axes.get_ylim()
        ticks = dict(
            zip([t.get_text() for t in axes.get_yticklabels()], axes.get_yticks(), strict=True)
        )
        band = (ticks[f"{hertz / 1000:g}"] - bottom) / (top - bottom) * len(mel)
        assert mel[:, 10].argmax() + 0.5 == pytest.approx(band, abs=1)


def test_a_clip_is_drawn_from_its_start_to_its_end() -> None:
    row = clip_row([sine(0.5), sine(2.0)])
    left, right, _, _ = row.plots[0].figure.axes[1].images[0].get_extent()
    assert [left, right] == pytest.approx([0, 0.5], abs=0.01)
    axes = row.plots[0].figure.axes[0]
    box = axes.collections[0].get_datalim(axes.transData)
    assert list(box.extents) == pytest.approx([0, -0.5, 0.5, 0.5], abs=0.01)


def test_the_waveform_shows_a_single_click() -> None:
    audio = np.zeros(240_000, np.float32)
    audio[123_456] = 0.9
    axes = clip_row([Clip("click", audio, 24000)]).plots[0].figure.axes[0]
    assert axes.collections[0].get_datalim(axes.transData).y1 == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [0, 1, 2, 500, 24000])
def test_silent_short_and_empty_clips_are_drawn(samples: int) -> None:
    constant = Clip("constant", np.full(samples, 0.25, np.float32), 24000)
    page = page_of(clip_row([silence(samples), constant]), clip_row([silence(samples)]))
    assert len(page.attributes("src", "img")) == 3
    assert len(page.attributes("src", "audio")) == (3 if samples else 0)


def test_silence_is_dark_in_a_spectrogram() -> None:
    dither = np.random.default_rng(0).normal(0, LEAST_AMPLITUDE / 100, 24000).astype(np.float32)
    for clip in (silence(24000), Clip("dither", dither, 24000)):
        (mel,) = mel_images(clip_row([clip]))
        assert mel.max() < -35


@pytest.mark.parametrize(
    ("audio", "rate", "message"),
    [
        (np.zeros((1, 9), np.float32), 24000, r"shape \[n\], not \[1, 9\]"),
        (np.zeros(9), 24000, "float32, not float64"),
        (np.zeros(9, np.int16), 24000, "float32, not int16"),
        ([0.0], 24000, "float32, not list"),
        (np.array([np.nan], np.float32), 24000, "not finite"),
        (np.zeros(9, np.float32), 0, "sample_rate must be positive, not 0"),
    ],
)
def test_wrong_audio_is_named(audio: npt.NDArray[np.float32], rate: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"clip 'take 7': .*{message}"):
        Clip("take 7", audio, rate)


def test_wrong_numbers_are_named() -> None:
    with pytest.raises(ValueError, match=r"curve 'loss': .*\[2\] and \[3\]"):
        curves("Loss", {"loss": ([1, 2], [1, 2, 3])}, "step", "loss")
    with pytest.raises(ValueError, match=r"curve 'loss': .*\[1, 1\]"):
        curves("Loss", {"loss": ([[1]], [[1]])}, "step", "loss")
    with pytest.raises(ValueError, match="curve 'loss': a log axis"):
        curves("Loss", {"loss": ([1, 2], [1, 0])}, "step", "loss", log_y=True)
    with pytest.raises(ValueError, match="'Lengths': values must be finite"):
        histogram("Lengths", [1.0, np.inf], "seconds")
    with pytest.raises(ValueError, match="'Times': values must be finite"):
        bars("Times", {"encode": np.nan}, "seconds")
    with pytest.raises(ValueError, match="'Lengths': values must be finite"):
        histogram("Lengths", ["long", "short"], "seconds")
    with pytest.raises(ValueError, match="'Times': bars cannot show values < 0"):
        bars("Times", {"encode": -1}, "seconds")
    with pytest.raises(ValueError, match="table 'Facts': row 1 has 1 cells, not 2"):
        table([], [("a", 1), ("b",)], title="Facts")
    with pytest.raises(ValueError, match="at least one clip"):
        clip_row([])


def test_figures_without_data_can_be_drawn() -> None:
    empty = [curves("Loss", {}, "step", "loss"), curves("Loss", {"a": ([], [])}, "step", "loss")]
    log = curves("Loss", {"a": ([1], [2.5]), "_b": ([1, 2], [3, np.nan])}, "x", "y", log_y=True)
    page = page_of(*empty, log, bars("Times", {}, "seconds"), histogram("Lengths", [], "seconds"))
    assert len(page.attributes("src", "img")) == 5


def test_curves_show_the_data_and_say_it_in_words() -> None:
    steps, losses = np.arange(20_000), np.linspace(8, 2, 20_000)
    plot = curves("Loss", {"train": (steps, losses), "test": ([0, 9], [8, 3])}, "step", "nats")
    line = plot.figure.axes[0].lines[0]
    np.testing.assert_array_equal(line.get_xydata(), np.stack([steps, losses], axis=1))
    assert plot.alt == "Loss: nats over step; train from 8 to 2, test from 8 to 3."
    assert len(svg_uri(plot.figure)) < 200_000  # a long run must not make a huge page


def test_numbers_of_a_column_line_up() -> None:
    columns = table(
        ["stage", "count", "seconds", "mixed", "none"],
        [("a", 1, 0.5, 1, None), ("b", 12345, np.float32(123.456), "x", None)],
    )
    assert columns.rows == [("a", "1", "0.5", "1", ""), ("b", "12,345", "123.5", "x", "")]
    assert columns.numeric == [False, True, True, False, True]
    assert format_numbers([0.0, 0.00123456]) == ["0.000000", "0.001235"]
    assert format_numbers([0.0, np.nan]) == ["0.000", "nan"]


def test_write_page_replaces_whole_pages_only(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(path, "First", [])
    write_page(path, "Second", [Section("Words", ["Grüße"])])
    assert path.read_text(encoding="utf-8") == render_page("Second", [Section("Words", ["Grüße"])])
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_page(tmp_path / "folder", "Third", [])
    assert sorted(tmp_path.iterdir()) == [tmp_path / "folder", path]


@pytest.mark.slow
def test_several_threads_may_draw_at_once() -> None:
    pages: list[Page] = []
    threads = [
        threading.Thread(target=lambda: pages.append(page_of(*everything("text"))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(page.attributes("src", "img")) for page in pages] == [5] * 4
