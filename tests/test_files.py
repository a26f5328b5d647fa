"""Paths and URIs: what is written appears whole, and alone."""

import tempfile
from pathlib import Path

import pytest
from pyarrow import fs

from sheen.core import files


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(params=["path", "uri"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same folder, as a path and as a URI."""
    return str(tmp_path) if request.param == "path" else tmp_path.as_uri()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"a")
    (folder / "deep" / "er" / "b.bin").write_bytes(b"b")
    return folder


def test_is_empty(root: str, tmp_path: Path) -> None:
    assert files.is_empty(files.join(root, "nothing"))
    (tmp_path / "folder").mkdir()
    assert files.is_empty(files.join(root, "folder"))
    (tmp_path / "folder" / "inner").mkdir()
    assert not files.is_empty(files.join(root, "folder"))
    (tmp_path / "file").touch()
    assert not files.is_empty(files.join(root, "file"))


def test_kind_and_exists(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.kind(root) == fs.FileType.Directory
    assert files.kind(files.join(root, "file")) == fs.FileType.File
    assert files.exists(files.join(root, "file"))
    assert not files.exists(files.join(root, "nothing"))


def test_write_bytes_leaves_the_file_and_nothing_else(root: str, tmp_path: Path) -> None:
    location = files.join(root, "new", "folder", "file.bin")
    for content in (b"first, and longer", b"second"):
        files.write_bytes(location, content)
        assert files.read_bytes(location) == content
        assert tree(tmp_path / "new") == {"folder/file.bin": content}


def test_a_write_that_fails_leaves_nothing(root: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        files.write_bytes(files.join(root, "taken"), b"x")
    assert names(tmp_path) == {"taken"}


def test_copy_folder_replaces_what_was_there(root: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (target / "deep").mkdir(parents=True)
    (target / "old.bin").write_bytes(b"old")
    (target / "deep" / "old.bin").write_bytes(b"old")
    files.copy_folder(files.join(root, "source"), files.join(root, "target"))
    assert tree(target) == tree(source) == {"a.bin": b"a", "deep/er/b.bin": b"b"}
    assert names(tmp_path) == {"source", "target"}


def test_copy_folder_makes_the_folders_above(root: str, source: Path, tmp_path: Path) -> None:
    files.copy_folder(files.join(root, "source"), files.join(root, "a", "b", "target"))
    assert tree(tmp_path / "a" / "b" / "target") == tree(source)
    assert names(tmp_path / "a" / "b") == {"target"}


def test_a_copy_that_fails_changes_nothing(root: str, tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old.bin").write_bytes(b"old")
    with pytest.raises(OSError, match="nothing"):
        files.copy_folder(files.join(root, "nothing"), files.join(root, "target"))
    assert tree(tmp_path / "target") == {"old.bin": b"old"}
    assert names(tmp_path) == {"target"}


def test_copy_folder_from_another_filesystem(source: Path, tmp_path: Path) -> None:
    below = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    files.copy_folder("source", str(tmp_path / "target"), source_filesystem=below)
    assert tree(tmp_path / "target") == tree(source)


def test_list_files_lists_one_level(root: str, source: Path) -> None:
    listed = files.list_files(files.join(root, "source"))
    assert [Path(path).name for path in listed] == ["a.bin"]
    assert files.list_files(files.join(root, "nothing")) == []


def test_delete_folder(root: str, source: Path, tmp_path: Path) -> None:
    files.delete_folder(files.join(root, "source"))
    files.delete_folder(files.join(root, "source"))  # nothing there is no error
    assert names(tmp_path) == set()


def test_local_folder_of_a_path_is_itself_and_of_a_uri_a_copy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert files.local_folder(str(source)) == source
    copy = files.local_folder(source.as_uri())
    assert copy != source
    assert tree(copy) == tree(source)


def test_names_with_spaces_and_percent_signs(tmp_path: Path) -> None:
    path = tmp_path / "my voice 100%25 é#1" / "a b.bin"
    files.write_bytes(str(path), b"x")
    assert path.read_bytes() == b"x"
    assert files.read_bytes(str(path)) == files.read_bytes(path.as_uri()) == b"x"


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.absolute("a/../b") == str(tmp_path / "b")
    assert files.absolute("~/c") == str(tmp_path / "home" / "c")
    assert files.absolute("s3://bucket/a") == "s3://bucket/a"
    files.write_bytes("plain.bin", b"x")
    assert (tmp_path / "plain.bin").read_bytes() == b"x"


def test_join() -> None:
    assert files.join("/a/", "b", "c") == "/a/b/c"
    assert files.join("s3://bucket/", "c") == "s3://bucket/c"


@pytest.mark.parametrize("location", ["gopher://host/data", "file://", "file:///a b"])
def test_a_uri_that_cannot_be_opened_is_named(location: str) -> None:
    with pytest.raises(ValueError, match="not a path or URI that can be opened") as caught:
        files.read_bytes(location)
    assert str(caught.value).startswith(f"{location}: ")


def test_an_unknown_scheme_is_named() -> None:
    for use in (files.exists, files.is_empty, files.list_files, files.delete_folder):
        with pytest.raises(ValueError, match="gopher"):
            use("gopher://host/data")
    with pytest.raises(ValueError, match="gopher"):
        files.write_bytes("gopher://host/data", b"x")
