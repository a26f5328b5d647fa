"""What of an input is a recording, and what its rows are called after; which text is whose."""

import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES

from sheen.data.recordings import RecordingReader
from sheen.prepare.sources import (
    _TWO_LETTERS,
    Texts,
    _names,
    find_sources,
    read_text,
    texts_beside,
)
from sheen.text.normalization import LANGUAGES


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names_of(*locations: Path | str) -> list[str]:
    return [source.name for source in find_sources([str(each) for each in locations]).sources]


def test_a_folder_gives_its_recordings_and_counts_the_rest(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp3", "a.FLAC", "sub/c.mp4", "notes.txt", "cover.jpg", ".hidden.wav", "x")
    found = find_sources([str(tmp_path)])
    assert [source.name for source in found.sources] == ["a", "b", "c"]
    assert dict(found.skipped) == {".txt": 1, ".jpg": 1, "x": 1}


def test_a_file_that_is_named_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path, "take.raw", "b.wav")
    assert names_of(tmp_path / "take.raw", tmp_path / "*.wav") == ["take", "b"]


def test_a_glob_takes_no_text_beside_a_recording_for_one(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp3", "a.txt", "b.raw", "b.srt", "B.VTT", "sub/c.wav", "sub/c.txt")
    found = find_sources([str(tmp_path / "*")])
    assert [source.name for source in found.sources] == ["a", "b", "c"]
    assert found.skipped == {".txt": 2, ".srt": 1, ".vtt": 1}
    own = texts_beside([source.location for source in found.sources[::2]]).own
    assert [Path(text).name for text in own.values()] == ["a.txt", "c.txt"]
    with pytest.raises(ValueError, match=r"--input .*\*\.txt: expected a recording.*found 1 \.txt"):
        find_sources([str(tmp_path / "*.txt")])


@pytest.mark.parametrize("query", ["id={}", "sig=a/{}"])
def test_recordings_that_differ_in_their_options_alone_have_names_of_their_own(query: str) -> None:
    """As those of a server that has them in a database."""
    locations = [f"https://host/get?{query.format(number)}" for number in (1, 2)]
    names = _names(locations)
    assert len(set(names)) == 2
    assert all(name.startswith("get") for name in names)


def test_names_that_are_alike_get_their_folders_or_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "one/1.mp3", "two/1.mp3")
    assert names_of(tmp_path) == ["one/1", "two/1"]
    touch(tmp_path, "two/1.wav")
    assert names_of(tmp_path) == ["one/1.mp3", "two/1.mp3", "two/1.wav"]


def test_an_input_without_recordings_is_an_error_that_says_what_it_holds(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt", "b.txt")
    with pytest.raises(ValueError, match=r"--input .*: expected a recording.* found 2 \.txt"):
        find_sources([str(tmp_path)])
    with pytest.raises(ValueError, match=r"--input .*nowhere: no such file or folder"):
        find_sources([str(tmp_path / "nowhere")])


def test_a_recording_that_is_named_twice_is_an_error(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    with pytest.raises(ValueError, match=r"a\.wav: it is named twice"):
        find_sources([str(tmp_path), str(tmp_path / "a.wav")])


def test_a_link_to_what_is_not_there_is_a_recording_that_is_missing(tmp_path: Path) -> None:
    """As of git-annex, before its file is fetched: it is counted, and read when it is there."""
    touch(tmp_path, "here.mp3", "sub/x.txt")
    (tmp_path / "sub" / "gone.mp3").symlink_to("../.git/annex/objects/1")
    (tmp_path / "round.mp3").symlink_to("round.mp3")
    (tmp_path / "notes.txt").symlink_to("nowhere")
    for given in (tmp_path, tmp_path / "**"):
        found = find_sources([str(given)])
        assert [source.name for source in found.sources] == ["here", "round", "gone"]
        assert found.skipped == {".txt": 2}
    reader = RecordingReader()
    for source, error in zip(found.sources[1:], (OSError, FileNotFoundError), strict=True):
        with pytest.raises(error):
            reader.read({"audio": source.location, "container": None, "place": None})


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
    assert texts_beside(made(tmp_path / "c", "a.mp3", "a.wav")) == Texts()


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


@pytest.mark.parametrize(
    ("tag", "language"),
    [("eng", "en"), ("ger", "de"), ("deu", "de"), ("fre", "fr"), ("zho", "zh"), ("jpn", "ja"),
     ("por-BR", "pt"), ("yue", "yue"), ("jav", "jw")],
)  # fmt: skip
def test_subtitles_may_have_the_three_letters_of_their_language(
    tmp_path: Path, tag: str, language: str
) -> None:
    """As mkvtoolnix and many others write them. `--language` takes what the ASR models know."""
    recordings = made(tmp_path, "a.mp3", f"a.{tag}.srt", "a.swa.srt")
    assert texts_beside(recordings[:1], language).own == {
        recordings[0]: str(tmp_path / f"a.{tag}.srt")
    }


def test_every_language_of_whisper_has_its_three_letters() -> None:
    known = {*_TWO_LETTERS.values(), *LANGUAGES}
    assert {code for code in _LANGUAGE_CODES if len(code) == 2} == known


def test_the_only_text_of_a_folder_may_be_of_all_its_recordings(tmp_path: Path) -> None:
    """Unless it has its own: that is then the text of that one alone."""
    chapters = made(tmp_path / "book", "1.mp3", "2.mp3", "3.mp3", "3.srt", "book.txt")
    assert texts_beside(chapters) == Texts(
        {chapters[2]: f"{tmp_path}/book/3.srt"},
        dict.fromkeys(chapters[:2], f"{tmp_path}/book/book.txt"),
    )
    # macOS writes such files beside others, on disks that are not its own.
    odd = made(tmp_path / "mac", "1.mp3", "2.mp3", "book.txt", "._book.txt", "._1.mp3", "._1.txt")
    assert texts_beside(odd[:2]) == Texts({}, dict.fromkeys(odd[:2], f"{tmp_path}/mac/book.txt"))
    (tmp_path / "mac" / "book.txt").unlink()
    assert texts_beside(odd[:2]) == Texts()
    for number, names in enumerate((["1.mp3", "2.mp3", "1.txt"], ["1.mp3", "a.txt", "b.txt"])):
        assert texts_beside(made(tmp_path / str(number), *names)).shared == {}


def test_a_text_is_read_and_an_empty_one_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffOne line.\r\nAnother — line.\r\n", "utf-8")
    assert read_text(str(tmp_path / "a.txt")).split() == ["One", "line.", "Another", "—", "line."]
    (tmp_path / "b.txt").write_text(" \n\n", "utf-8")
    with pytest.raises(ValueError, match=r"b\.txt: it is empty"):
        read_text(str(tmp_path / "b.txt"))
