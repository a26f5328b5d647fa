"""Texts beside recordings: each recording's own, or an error that names both."""

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from sheen.prepare.sources.beside import Beside, read_text, texts_beside


def made(folder: Path, *names: str) -> list[str]:
    """Empty files; the locations of those that are recordings."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [str(folder / name) for name in names if name.endswith(("mp3", "wav", "opus"))]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_text_has_the_name_of_its_recording(tmp_path: Path, scheme: str) -> None:
    one = made(tmp_path / "a book", "part 1.mp3", "part 1.txt", "part 2.mp3", "cover.txt")
    two = made(tmp_path / "b", "part 1.wav", "part 1.VTT", "x.y.opus", "x.y.srt", "x.txt")
    names = [scheme + name.replace(" ", "%20" if scheme else " ") for name in [*one, *two]]
    found = texts_beside(names).own
    assert list(found) == [names[0], names[2], names[3]]
    ends = [value.replace("%20", " ").rpartition("/")[2] for value in found.values()]
    assert ends == ["part 1.txt", "part 1.VTT", "x.y.srt"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_alike_in_either_normal_form(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize(form, "é.txt")).touch()
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    (location,) = made(tmp_path, unicodedata.normalize(other, "é.mp3"))  # type: ignore[arg-type]
    assert texts_beside([location]).own == {
        location: f"{tmp_path}/{unicodedata.normalize(form, 'é.txt')}"
    }


def test_two_texts_or_two_recordings_of_one_name_are_an_error(tmp_path: Path) -> None:
    locations = made(tmp_path, "a.mp3", "a.srt", "a.txt")
    with pytest.raises(ValueError, match=r"a\.mp3: it has several texts, a\.srt and a\.txt"):
        texts_beside(locations)
    locations = made(tmp_path / "b", "a.mp3", "a.wav", "a.txt")
    with pytest.raises(ValueError, match=r"a\.wav: a\.txt would be the text of .*a\.mp3 too"):
        texts_beside(locations)
    assert texts_beside(made(tmp_path / "c", "a.mp3", "a.wav")) == Beside()


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        (None, {"one": "one.en.vtt", "two": "two.srt", "x.en": "x.en.srt"}),
        ("en", {"one": "one.en.vtt", "two": "two.srt", "x.en": "x.en.srt", "y": "y.en-orig.vtt"}),
        ("de", {"two": "two.srt", "x.en": "x.en.srt", "y": "y.de.vtt"}),
    ],
)
def test_subtitles_may_have_their_language_in_their_name(
    tmp_path: Path, language: str | None, expected: dict[str, str]
) -> None:
    """As yt-dlp writes them. One without is preferred, others may be translations of it."""
    names = ["one.en.vtt", "two.de.srt", "two.srt", "x.en.srt", "no language.vtt", "z.en.txt"]
    if language is not None:
        names += ["y.de.vtt", "y.en-orig.vtt"]
    recordings = [f"{stem}.mp3" for stem in ("one", "two", "x", "x.en", "y", "z")]
    found = texts_beside(made(tmp_path, *names, *recordings), language).own
    told = {Path(one).stem: Path(text).name for one, text in found.items()}
    assert told == expected
    if language is not None:
        with pytest.raises(ValueError, match=r"y\.mp3: .*y\.de\.vtt and y\.en-orig\.vtt; .*--lang"):
            texts_beside([str(tmp_path / "y.mp3")])


def test_the_only_text_of_a_folder_may_be_of_all_its_recordings(tmp_path: Path) -> None:
    """Unless it has its own: that is then the text of that one alone."""
    chapters = made(tmp_path / "book", "1.mp3", "2.mp3", "3.mp3", "3.srt", "book.txt")
    assert texts_beside(chapters) == Beside(
        {chapters[2]: f"{tmp_path}/book/3.srt"},
        dict.fromkeys(chapters[:2], f"{tmp_path}/book/book.txt"),
    )
    for number, names in enumerate((["1.mp3", "2.mp3", "1.txt"], ["1.mp3", "a.txt", "b.txt"])):
        assert texts_beside(made(tmp_path / str(number), *names)).shared == {}


def test_a_text_is_read_and_an_empty_one_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOne line.\r\nAnother — line.\r\n", "utf-8")
    assert read_text(str(tmp_path / "a.txt")).split() == ["One", "line.", "Another", "—", "line."]
    (tmp_path / "b.txt").write_text(" \n\n", "utf-8")
    with pytest.raises(ValueError, match=r"b\.txt: it is empty"):
        read_text(str(tmp_path / "b.txt"))
