"""Paths and URIs: what is written appears whole, and alone; what is read may be anywhere."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import fsspec
import pytest
from pyarrow import fs

from helpers.trees import names, tree
from sheen.storage import files, uris

WAIT_S = 60
"""Far longer than anything takes: what a failing reader costs, never a passing one."""


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


def test_a_location_is_empty_without_files_or_folders(root: str, tmp_path: Path) -> None:
    assert files.is_empty(uris.join(root, "nothing"))
    (tmp_path / "folder").mkdir()
    assert files.is_empty(uris.join(root, "folder"))
    (tmp_path / "folder" / "inner").mkdir()
    assert not files.is_empty(uris.join(root, "folder"))
    (tmp_path / "file").touch()
    assert not files.is_empty(uris.join(root, "file"))


def test_files_folders_and_nothing_are_told_apart(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert files.kind(root) == fs.FileType.Directory
    assert files.kind(uris.join(root, "file")) == fs.FileType.File
    assert files.exists(uris.join(root, "file"))
    assert not files.exists(uris.join(root, "nothing"))


def test_writing_leaves_the_file_and_nothing_else(root: str, tmp_path: Path) -> None:
    location = uris.join(root, "new", "folder", "file.bin")
    for content in (b"first, and longer", b"second"):
        files.write_bytes(location, content)
        assert files.read_bytes(location) == content
        assert tree(tmp_path / "new") == {"folder/file.bin": content}


def test_a_write_that_fails_leaves_nothing(root: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        files.write_bytes(uris.join(root, "taken"), b"x")
    assert names(tmp_path) == {"taken"}


def test_listing_shows_one_level(root: str, source: Path) -> None:
    listed = files.list_files(uris.join(root, "source"))
    assert [Path(path).name for path in listed] == ["a.bin"]
    assert files.list_files(uris.join(root, "nothing")) == []


def test_a_folder_is_deleted_with_all_it_holds(root: str, source: Path, tmp_path: Path) -> None:
    files.delete(uris.join(root, "source"))
    files.delete(uris.join(root, "source"))  # nothing there is no error
    assert names(tmp_path) == set()


def test_names_may_have_spaces_and_percent_signs(tmp_path: Path) -> None:
    path = tmp_path / "my voice 100%25 é#1" / "a b.bin"
    files.write_bytes(str(path), b"x")
    assert path.read_bytes() == b"x"
    assert files.read_bytes(str(path)) == files.read_bytes(path.as_uri()) == b"x"


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert uris.absolute("a/../b") == str(tmp_path / "b")
    assert uris.absolute("~/c") == str(tmp_path / "home" / "c")
    assert uris.absolute("s3://bucket/a") == "s3://bucket/a"
    with pytest.raises(ValueError, match="an empty location"):
        uris.absolute("")  # an unset variable of a shell: not the working directory
    files.write_bytes("plain.bin", b"x")
    assert (tmp_path / "plain.bin").read_bytes() == b"x"


def test_locations_are_joined_with_one_slash() -> None:
    assert uris.join("/a/", "b", "c") == "/a/b/c"
    assert uris.join("s3://bucket/", "c") == "s3://bucket/c"


@pytest.mark.parametrize("location", ["gopher://host/data", "file://", "file:///a b"])
def test_a_uri_that_cannot_be_opened_is_named(location: str) -> None:
    with pytest.raises(ValueError, match="not a path or URI that can be opened") as caught:
        files.read_bytes(location)
    assert str(caught.value).startswith(f"{location}: ")


def test_an_unknown_scheme_is_named() -> None:
    for use in (files.exists, files.is_empty, files.list_files, files.delete):
        with pytest.raises(ValueError, match="gopher"):
            use("gopher://host/data")
    with pytest.raises(ValueError, match="gopher"):
        files.write_bytes("gopher://host/data", b"x")


def test_names_in_uris_are_escaped_and_those_in_paths_are_not() -> None:
    assert uris.name("/a/b%20c/") == "b%20c"
    assert uris.name("s3://bucket/b%20c.tar?region=x/y") == "b c.tar"
    assert uris.name("https://host/b%20c.tar?token=x") == "b%20c.tar"
    assert uris.join("s3://bucket/a/?region=x", "b") == "s3://bucket/a/b?region=x"
    assert uris.child("s3://bucket/a", "b c/#d") == "s3://bucket/a/b%20c/%23d"
    assert uris.child("/a", "b c/#d") == "/a/b c/#d"
    assert uris.child("hf://datasets/a/b", "c d") == "hf://datasets/a/b/c d"


def test_a_path_in_a_file_is_relative_to_the_file_that_names_it() -> None:
    assert uris.sibling("/data/m.jsonl", "a.wav") == "/data/a.wav"
    assert uris.sibling("m.jsonl", "a.wav") == "./a.wav"
    assert uris.sibling("s3://b/x/m.jsonl?region=r", "w/a b.wav") == "s3://b/x/w/a%20b.wav?region=r"
    for path in ("/other/a.wav", "gs://b/a.wav"):
        assert uris.sibling("s3://b/m.jsonl", path) == path


# Globs


def spread(root: str) -> None:
    for name in ("b.tar", "a.tar", "c.txt", ".d.tar", "x/e.tar", "x/y/f.tar", ".h/g.tar"):
        files.write_bytes(uris.join(root, name), b"x")


def below(root: str, pattern: str) -> list[str]:
    found = files.glob(uris.join(root, pattern))
    assert found == sorted(found)
    return [location.removeprefix(f"{root}/") for location in found]


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's memory filesystem, as a URI."""
    yield "memory://sheen-files"
    filesystem = fsspec.filesystem("memory")
    if filesystem.exists("/sheen-files"):
        filesystem.rm("/sheen-files", recursive=True)


@pytest.mark.parametrize("place", ["path", "uri", "memory"])
def test_globs_match_on_every_filesystem(place: str, tmp_path: Path, memory: str) -> None:
    root = {"path": str(tmp_path), "uri": tmp_path.as_uri(), "memory": memory}[place]
    spread(root)
    assert below(root, "*.tar") == ["a.tar", "b.tar"]
    assert below(root, "[ac].*") == ["a.tar", "c.txt"]
    assert below(root, "*") == ["a.tar", "b.tar", "c.txt", "x"]
    assert below(root, ".*.tar") == [".d.tar"]
    assert below(root, "*/*.tar") == ["x/e.tar"]
    assert below(root, "x*/y/f.tar") == ["x/y/f.tar"]
    assert below(root, "**/*.tar") == ["a.tar", "b.tar", "x/e.tar", "x/y/f.tar"]
    assert below(root, "x/**") == ["x/e.tar", "x/y/f.tar"]
    assert below(root, "x/**/y/*") == ["x/y/f.tar"]
    assert below(root, "*.zip") == below(root, "none/*.tar") == []
    assert below(root, "a.tar") == ["a.tar"]
    assert below(root, "none") == ["none"]  # no wildcard: whoever reads it says that it is missing


def test_a_question_mark_is_a_wildcard_in_paths_only(tmp_path: Path) -> None:
    spread(str(tmp_path))
    assert below(str(tmp_path), "?.tar") == ["a.tar", "b.tar"]
    assert files.glob("s3://bucket/a?region=x") == ["s3://bucket/a?region=x"]


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    for name in ("take [1].tar", "take 1.tar"):
        files.write_bytes(f"{tmp_path}/{name}", b"x")
    assert files.glob(f"{tmp_path}/take [1].tar") == [f"{tmp_path}/take [1].tar"]


def test_what_a_glob_of_uris_gives_can_be_opened(tmp_path: Path) -> None:
    files.write_bytes(f"{tmp_path}/a b/é 100%.bin", b"x")
    (found,) = files.glob(f"{tmp_path.as_uri()}/a%20*/*.bin")
    assert found == (tmp_path / "a b" / "é 100%.bin").as_uri()
    assert files.read_bytes(found) == b"x"


def test_a_relative_glob_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spread(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.glob("x/*.tar") == ["x/e.tar"]
    assert files.glob("*.txt") == ["./c.txt"]


def test_many_small_files_are_read_several_at_a_time_and_given_in_order() -> None:
    another = Event()

    def read(number: int) -> str:
        if number == 0:
            assert another.wait(WAIT_S), "the first alone is read"
        else:
            another.set()
        return str(number)

    numbers = range(6 * files.READERS)
    assert [*files.map_ahead(read, numbers)] == [*map(str, numbers)]


def test_listing_below_shows_files_at_any_depth_but_hidden_ones(
    tmp_path: Path, memory: str
) -> None:
    for root in (str(tmp_path), tmp_path.as_uri(), memory):
        spread(root)
        expected = ["a.tar", "b.tar", "c.txt", "x/e.tar", "x/y/f.tar"]
        assert files.list_below(root) == [f"{root}/{name}" for name in expected]


# Filesystems that pyarrow does not know


def test_a_filesystem_in_memory_is_read_and_written(memory: str) -> None:
    location = uris.join(memory, "a", "b.bin")
    files.write_bytes(location, b"x")
    assert files.read_bytes(location) == b"x"
    assert files.kind(uris.join(memory, "a")) == fs.FileType.Directory
    assert uris.contains(memory, location)
    assert not files.exists(uris.join(memory, "none"))
    with pytest.raises(FileNotFoundError):
        files.read_bytes(uris.join(memory, "none"))


def test_hugging_face_and_stores_are_opened_without_asking_them() -> None:
    opened = {
        "hf://datasets/owner/name/a b.parquet": "datasets/owner/name/a b.parquet",
        "gs://bucket/a%20b/c": "bucket/a b/c",
        "s3://key:secret@bucket/a%20b/?region=eu-west-1": "bucket/a b",
        "https://host/a%20b?token=x": "https://host/a%20b?token=x",
    }
    for location, expected in opened.items():
        assert uris.open_filesystem(location)[1] == expected


@pytest.mark.parametrize("location", ["gs://bucket", "s3://key:secret@bucket?region=eu-west-1"])
def test_a_bucket_has_one_client_and_pyarrows_paths(location: str) -> None:
    first, path = uris.open_filesystem(uris.join(location, "a%20b", "c.tar"))
    second, _ = uris.open_filesystem(uris.join(location, "d.tar"))
    assert first is second
    expected_fs, expected = fs.FileSystem.from_uri(uris.join(location, "a%20b", "c.tar"))
    assert (first, path) == (expected_fs, expected)


def test_a_scheme_whose_package_is_missing_names_it() -> None:
    with pytest.raises(ValueError, match="paramiko") as caught:
        files.exists("sftp://host/data")
    assert str(caught.value).startswith("sftp://host/data: sftp:// needs a package that is not")


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves a folder, and says nothing of it."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    """`tmp_path` as a server on this machine gives it."""
    handler = partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files_are_read_over_http(website: str, tmp_path: Path) -> None:
    spread(str(tmp_path))
    (tmp_path / "a b.tar").write_bytes(b"y")
    assert files.read_bytes(f"{website}/x/e.tar") == b"x"
    assert files.read_bytes(f"{website}/a%20b.tar?token=1") == b"y"
    assert files.kind(f"{website}/x/e.tar") == fs.FileType.File
    assert not files.exists(f"{website}/none.tar")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{website}/none.tar")


def test_a_glob_over_http_reads_the_servers_index(website: str, tmp_path: Path) -> None:
    spread(str(tmp_path))
    assert files.glob(f"{website}/x/*.tar") == [f"{website}/x/e.tar"]
    assert files.glob(f"{website}/x/*.zip") == []


def test_a_network_librarys_error_is_an_os_error() -> None:
    expected = pytest.raises(OSError, match="http://host/a: LookupError: odd")
    with expected, uris.network_errors("http://host/a"):
        raise LookupError("odd")
    with pytest.raises(LookupError), uris.network_errors("/a"):
        raise LookupError("a fault of ours")
    with pytest.raises(ValueError, match="kept"), uris.network_errors("http://host/a"):
        raise ValueError("kept")


def test_a_suffix_is_the_names_and_not_the_options() -> None:
    assert uris.with_suffix("/runs/mine", ".dry-run") == "/runs/mine.dry-run"
    assert uris.with_suffix("s3://b/mine/?region=x", ".dry-run") == "s3://b/mine.dry-run?region=x"
