"""Texts beside recordings: each recording's own, or an error that names both."""

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from sheen.prepare.beside import read_text, texts_beside


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
    found = texts_beside(names)
    assert list(found) == [names[0], names[2], names[3]]
    ends = [value.replace("%20", " ").rpartition("/")[2] for value in found.values()]
    assert ends == ["part 1.txt", "part 1.VTT", "x.y.srt"]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_alike_in_either_normal_form(form: Literal["NFC", "NFD"], tmp_path: Path) -> None:
    (tmp_path / unicodedata.normalize(form, "é.txt")).touch()
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    (location,) = made(tmp_path, unicodedata.normalize(other, "é.mp3"))  # type: ignore[arg-type]
    assert texts_beside([location]) == {
        location: f"{tmp_path}/{unicodedata.normalize(form, 'é.txt')}"
    }


def test_two_texts_or_two_recordings_of_one_name_are_an_error(tmp_path: Path) -> None:
    locations = made(tmp_path, "a.mp3", "a.srt", "a.txt")
    with pytest.raises(ValueError, match=r"a\.mp3: it has several texts, a\.srt and a\.txt"):
        texts_beside(locations)
    locations = made(tmp_path / "b", "a.mp3", "a.wav", "a.txt")
    with pytest.raises(ValueError, match=r"a\.wav: a\.txt would be the text of .*a\.mp3 too"):
        texts_beside(locations)
    assert texts_beside(made(tmp_path / "c", "a.mp3", "a.wav")) == {}


def test_a_text_is_read_and_an_empty_one_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOne line.\r\nAnother — line.\r\n", "utf-8")
    assert read_text(str(tmp_path / "a.txt")).split() == ["One", "line.", "Another", "—", "line."]
    (tmp_path / "b.txt").write_text(" \n\n", "utf-8")
    with pytest.raises(ValueError, match=r"b\.txt: it is empty"):
        read_text(str(tmp_path / "b.txt"))
