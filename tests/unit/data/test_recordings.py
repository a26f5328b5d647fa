"""The bytes of recordings, wherever they lie: the same from every form of input."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.example import VOICES, clips_of, flac
from sheen.data.corpus import read_manifest
from sheen.data.recordings import RecordingReader

COUNT = 12
HF_AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(scope="module")
def clips() -> list[dict[str, Any]]:
    """Recordings of the example: id, text, speaker and bytes."""
    return [
        {"id": clip.id, "text": clip.text, "speaker": clip.speaker, "bytes": flac(clip)}
        for clip in clips_of(VOICES[0])[:COUNT]
    ]


def make_ljspeech(folder: Path, clips: list[dict[str, Any]]) -> None:
    (folder / "wavs").mkdir(parents=True)
    for clip in clips:
        (folder / "wavs" / f"{clip['id']}.flac").write_bytes(clip["bytes"])
    lines = (f"{clip['id']}|{clip['text']}|{clip['text']}|{clip['speaker']}\n" for clip in clips)
    (folder / "metadata.csv").write_text("".join(lines), "utf-8")


def make_jsonl(folder: Path, clips: list[dict[str, Any]]) -> None:
    make_ljspeech(folder / "clips", clips)
    (folder / "clips" / "metadata.csv").unlink()
    lines = [
        {name: clip[name] for name in ("id", "text", "speaker")}
        | {"audio": f"clips/wavs/{clip['id']}.flac"}
        for clip in clips
    ]
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in lines), "utf-8")


def make_parquet(folder: Path, clips: list[dict[str, Any]]) -> None:
    """Two files of two row groups, as the Hugging Face hub has them."""
    (folder / "data").mkdir(parents=True)
    half = len(clips) // 2
    for number, part in enumerate((clips[:half], clips[half:])):
        audio = [{"bytes": clip["bytes"], "path": f"{clip['id']}.flac"} for clip in part]
        columns = {name: [clip[name] for clip in part] for name in ("id", "text", "speaker")}
        table = pa.table(columns | {"audio": pa.array(audio, HF_AUDIO)})
        path = folder / "data" / f"train-0000{number}-of-00002.parquet"
        pq.write_table(table, path, row_group_size=4)


def make_parquet_of_paths(folder: Path, clips: list[dict[str, Any]]) -> None:
    make_ljspeech(folder / "clips", clips)
    (folder / "clips" / "metadata.csv").unlink()
    columns = {name: [clip[name] for clip in clips] for name in ("id", "text", "speaker")}
    paths = [f"clips/wavs/{clip['id']}.flac" for clip in clips]
    pq.write_table(pa.table(columns | {"audio": paths}), folder / "clips.parquet")


def make_webdataset(folder: Path, clips: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    for shard in range(3):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as tar:
            for clip in clips[shard * len(clips) // 3 : (shard + 1) * len(clips) // 3]:
                meta = json.dumps({"text": clip["text"], "speaker": clip["speaker"]}).encode()
                for suffix, data in (("flac", clip["bytes"]), ("json", meta)):
                    info = tarfile.TarInfo(f"{clip['id']}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


FORMS = {
    "ljspeech": make_ljspeech,
    "jsonl": make_jsonl,
    "parquet": make_parquet,
    "parquet of paths": make_parquet_of_paths,
    "webdataset": make_webdataset,
}


def check_same(location: str, clips: list[dict[str, Any]], form: str | None = None) -> None:
    """Every row and every byte of the corpus, in its order."""
    rows = read_manifest(location, form=form).to_pylist()
    assert [row["reason"] for row in rows] == [None] * len(clips)
    for name in ("id", "text", "speaker"):
        assert [row[name] for row in rows] == [clip[name] for clip in clips]
    with RecordingReader() as reader:
        assert [reader.read(row) for row in rows] == [clip["bytes"] for clip in clips]
        for row, clip in zip(rows, clips, strict=True):
            with reader.open(row) as file:
                assert file.seek(-30, io.SEEK_END) == len(clip["bytes"]) - 30
                assert file.read() == clip["bytes"][-30:]
                assert file.seek(0) == 0
                assert file.read() == clip["bytes"]
        # In any other order too.
        assert [reader.read(row) for row in rows[::-1]] == [clip["bytes"] for clip in clips[::-1]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("place", ["path", "uri", "memory"])
def test_one_corpus_has_the_same_recordings_in_each_form(
    form: str, place: str, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    folder = tmp_path / "a corpus"
    FORMS[form](folder, clips)
    if place != "memory":
        check_same(str(folder) if place == "path" else folder.as_uri(), clips)
        return
    memory = fsspec.filesystem("memory")
    try:
        for path in folder.rglob("*.*"):
            memory.pipe(f"/{form}/{path.relative_to(folder)}", path.read_bytes())
        check_same(f"memory://{form}", clips)
    finally:
        memory.rm(f"/{form}", recursive=True)


class RangeHandler(SimpleHTTPRequestHandler):
    """Serves parts of files too, as stores do and the standard library's handler does not."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes")
        super().end_headers()

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has read enough hangs up: no error to print."""


def serve(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    bound = partial(handler, directory=str(folder))
    with QuietServer(("127.0.0.1", 0), bound) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    yield from serve(tmp_path, RangeHandler)


@pytest.mark.parametrize(
    ("form", "location"),
    [
        ("ljspeech", "corpus"),
        ("jsonl", "corpus/manifest.jsonl"),
        ("parquet", "corpus/data/*.parquet"),
        ("webdataset", "corpus/*.tar"),
    ],
)
def test_one_corpus_has_the_same_recordings_over_http(
    form: str, location: str, clips: list[dict[str, Any]], website: str, tmp_path: Path
) -> None:
    FORMS[form](tmp_path / "corpus", clips)
    # Over HTTP nothing tells a folder from a file.
    check_same(f"{website}/{location}", clips, form="ljspeech" if form == "ljspeech" else None)


def test_a_server_without_ranges_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    # Longer than fsspec reads at once.
    large = {"id": "a", "text": "one", "speaker": "ann", "bytes": bytes(3 << 20)}
    make_webdataset(tmp_path / "corpus" / "tar", [large | {"id": str(n)} for n in range(9)])
    make_ljspeech(tmp_path / "corpus" / "plain", [large | {"bytes": bytes(12 << 20)}])
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    for website in serve(tmp_path / "corpus", SimpleHTTPRequestHandler):
        (row,) = read_manifest(f"{website}/plain", form="ljspeech").to_pylist()
        with RecordingReader() as reader:
            assert reader.read(row) == bytes(12 << 20)
            with reader.open(row) as file:
                file.seek(1 << 20)
                assert file.read() == bytes(11 << 20)
        with pytest.raises(ValueError, match="range requests") as caught:
            read_manifest(f"{website}/tar/shard-0.tar")
        assert str(caught.value).startswith(f"input {website}/tar/shard-0.tar: ")


# What cannot be read


def rows_of(location: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_manifest(str(location)).to_pylist()
    return rows


@pytest.mark.parametrize("form", FORMS)
def test_a_file_that_has_gone_is_not_found(
    form: str, clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    FORMS[form](tmp_path / "corpus", clips)
    rows = rows_of(tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    with RecordingReader() as reader:
        for read in (reader.read, reader.open):
            with pytest.raises(FileNotFoundError):
                read(rows[0])


def test_a_row_without_a_recording_is_not_found() -> None:
    with RecordingReader() as reader, pytest.raises(FileNotFoundError, match="no recording"):
        reader.read({"audio": None, "container": None, "place": None})


def test_a_uri_that_cannot_be_opened_is_an_os_error() -> None:
    row = {"audio": "gopher://host/a.wav", "container": None, "place": None}
    with RecordingReader() as reader:
        for read in (reader.read, reader.open):
            with pytest.raises(OSError, match="gopher"):
                read(row)


def test_a_shard_cut_since_is_an_os_error_and_others_are_read(
    clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    make_webdataset(tmp_path / "corpus", clips)
    rows = rows_of(tmp_path / "corpus")
    first = tmp_path / "corpus" / "shard-0.tar"
    first.write_bytes(first.read_bytes()[: rows[1]["place"][0] + 10])
    with RecordingReader() as reader:
        assert reader.read(rows[0]) == clips[0]["bytes"]
        for read in (reader.read, reader.open):
            with pytest.raises(OSError, match=r"it ends before byte \d+; it has changed"):
                read(rows[1])
        assert reader.read(rows[0]) == clips[0]["bytes"]
        assert reader.read(rows[4]) == clips[4]["bytes"]


def test_a_parquet_file_changed_since_is_an_os_error(
    clips: list[dict[str, Any]], tmp_path: Path
) -> None:
    make_parquet(tmp_path / "corpus", clips)
    rows = rows_of(tmp_path / "corpus")
    make_parquet(tmp_path / "less", clips[:6])
    path = "data/train-00000-of-00002.parquet"
    shutil.copy(tmp_path / "less" / path, tmp_path / "corpus" / path)
    with RecordingReader() as reader:
        for row, fault in ((rows[3], "no row 3 in row group 0"), (rows[4], "no row group 1 of 1")):
            with pytest.raises(OSError, match=fault):
                reader.read(row)
        (tmp_path / "corpus" / path).write_bytes(b"no Parquet")
        with pytest.raises(OSError, match="train-00000"):
            reader.read(rows[0])
        assert reader.read(rows[6]) == clips[6]["bytes"]


def test_a_parquet_row_may_hold_a_path_only(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").write_bytes(b"by path")
    audio = [
        {"bytes": None, "path": "clips/a.wav"},
        {"bytes": b"", "path": "clips/a.wav"},
        {"bytes": None, "path": "gone.wav"},
        {"bytes": None, "path": None},
        None,
    ]
    table = pa.table({"audio": pa.array(audio, HF_AUDIO), "text": ["one"] * 5})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = rows_of(tmp_path / "a.parquet")
    with RecordingReader() as reader:
        assert reader.read(rows[0]) == b"by path"
        assert reader.read(rows[1]) == b""
        for row in rows[2:]:
            with pytest.raises(FileNotFoundError):
                reader.read(row)


def test_a_parquet_row_group_is_read_once(clips: list[dict[str, Any]], tmp_path: Path) -> None:
    make_parquet(tmp_path / "corpus", clips)
    rows = rows_of(tmp_path / "corpus")
    with RecordingReader() as reader:
        reader.read(rows[0])
        # In memory: what happens to the file does not matter to the rest of the row group.
        Path(rows[0]["audio"]).write_bytes(b"")
        assert [reader.read(row) for row in rows[:4]] == [clip["bytes"] for clip in clips[:4]]


def test_reading_needs_no_torch() -> None:
    code = "import sys, sheen.data.recordings, sheen.data.corpus; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert shown.stdout == "False\n"
