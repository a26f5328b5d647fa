"""What of an input is a recording, and what its rows are called after."""

from pathlib import Path

import pytest

from sheen.prepare.sources.recordings import find_sources


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
