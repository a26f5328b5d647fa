"""Where keys come from, and how a file of them is followed."""

import http.server
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sheen.serve.access import keys
from sheen.serve.access.keys import KEYS_VARIABLE, RELOAD_S, KeyFile, digest, read_keys
from sheen.serve.websocket.conversation import TICK_S

KEY, OTHER, THIRD = "first-key", "second-key", "third-key"
WAIT_S = 60
"""Far longer than anything takes: what a failing thread costs, never a passing one."""


def test_keys_come_from_a_file_or_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the house\n{KEY}  # mine\n\n{OTHER}\n")
    expected = frozenset({digest(KEY), digest(OTHER)})
    assert read_keys(str(file)) == expected
    monkeypatch.setenv(KEYS_VARIABLE, f"{KEY}, {OTHER}")
    assert read_keys(None) == expected


def test_a_sign_of_comments_inside_a_key_is_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or its beginning would open too.
    file = tmp_path / "keys"
    file.write_text("abc#def # mine\n#ghi\n")
    assert read_keys(str(file)) == {digest("abc#def")}
    monkeypatch.setenv(KEYS_VARIABLE, "abc#def")
    assert read_keys(None) == {digest("abc#def")}


@pytest.mark.parametrize("key", ["schlüssel", "two words", "bell\a"])
def test_a_key_that_no_header_carries_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEYS_VARIABLE, key)
    with pytest.raises(ValueError, match="printable ASCII"):
        read_keys(None)


def test_no_key_is_no_open_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    with pytest.raises(ValueError, match=r"SHEEN_API_KEYS.*auth to none"):
        read_keys(None)
    (tmp_path / "keys").write_text("# none yet\n")
    with pytest.raises(ValueError, match=r"keys_file .*holds no key"):
        read_keys(str(tmp_path / "keys"))
    with pytest.raises(ValueError, match=r"keys_file .*nothing"):
        read_keys(str(tmp_path / "nothing"))


# A file that changes


def digests_of(*names: str) -> frozenset[str]:
    return frozenset(digest(name) for name in names)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n{OTHER}\n")
    return file


@pytest.fixture
def follow(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., KeyFile]]:
    caplog.set_level(logging.INFO, "sheen")
    opened: list[KeyFile] = []

    def follow(location: str, hold_s: float = WAIT_S) -> KeyFile:
        opened.append(KeyFile(location, reload_s=0.01, hold_s=hold_s))
        return opened[-1]

    yield follow
    for followed in opened:
        followed.close()


def test_a_change_takes_effect_within_the_ten_seconds_that_the_documentation_states() -> None:
    """A WebSocket on which nothing is said looks at its key every TICK_S."""
    assert RELOAD_S + TICK_S < 10


class Shelf(http.server.BaseHTTPRequestHandler):
    """One file over HTTP, which a test replaces or takes away."""

    body: bytes | None = b""

    def do_GET(self) -> None:
        if self.body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf() -> Iterator[tuple[str, type[Shelf]]]:
    class Mine(Shelf):
        pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/keys", Mine
    server.shutdown()
    server.server_close()


def test_a_change_is_known_and_told_without_a_key(
    file: Path, follow: Callable[..., KeyFile], caplog: pytest.LogCaptureFixture
) -> None:
    keys = follow(str(file))
    assert keys.digests() == digests_of(KEY, OTHER)
    # A new file under the old name, as editors and Kubernetes write; and its clock says nothing.
    new = file.with_name("new")
    new.write_text(f"{OTHER}\n{THIRD}\nfourth\n")
    new.replace(file)
    # Told after it holds: whoever has read it knows the new keys.
    wait_for(lambda: "1 removed" in caplog.text)
    assert keys.digests() == digests_of(OTHER, THIRD, "fourth")
    told = [record.getMessage() for record in caplog.records]
    assert "2 keys added, 0 removed, 2 in all" in told[0]
    assert "2 keys added, 1 removed, 3 in all" in told[1]
    assert len(told) == 2
    for name in (KEY, OTHER, THIRD, "fourth", *digests_of(KEY, OTHER, THIRD)):
        assert name not in caplog.text


def test_a_file_behind_a_uri_is_followed_too(
    shelf: tuple[str, type[Shelf]], follow: Callable[..., KeyFile]
) -> None:
    url, files = shelf
    files.body = KEY.encode()
    keys = follow(url)
    assert keys.digests() == digests_of(KEY)
    files.body = OTHER.encode()
    wait_for(lambda: keys.digests() == digests_of(OTHER))
    files.body = None
    wait_for(lambda: keys._failing)
    assert keys.digests() == digests_of(OTHER)


def test_an_empty_file_lets_nobody_in(
    file: Path, follow: Callable[..., KeyFile], caplog: pytest.LogCaptureFixture
) -> None:
    keys = follow(str(file))
    file.write_text("# nobody\n")
    wait_for(lambda: keys.digests() == frozenset())
    message = "0 keys added, 2 removed, 0 in all: all requests are refused"
    wait_for(lambda: message in caplog.text)
    assert caplog.records[-1].levelno == logging.ERROR


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "not text": lambda file: file.write_bytes(b"\xff\xfe"),
    "not a key": lambda file: file.write_text(f"{OTHER}\nbell\a\n"),
}


@pytest.mark.parametrize("spoil", UNREADABLE.values(), ids=UNREADABLE)
def test_while_it_cannot_be_read_the_last_keys_hold_for_a_time_and_then_none(
    file: Path,
    follow: Callable[..., KeyFile],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
) -> None:
    keys = follow(str(file))
    spoil(file)
    wait_for(lambda: "stay valid for 60 s" in caplog.text)
    assert keys.digests() == digests_of(KEY, OTHER)
    keys._hold_s = 0.0
    assert keys.digests() is None
    wait_for(lambda: "has not been read in time" in caplog.records[-1].getMessage())
    assert caplog.records[-1].levelno == logging.ERROR
    if file.is_dir():
        file.rmdir()
    keys._hold_s = WAIT_S
    file.write_text(THIRD)
    wait_for(lambda: keys.digests() == digests_of(THIRD))
    assert "bell" not in caplog.text


def test_a_read_that_never_ends_is_one_that_fails(
    file: Path,
    follow: Callable[..., KeyFile],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys_now, release = follow(str(file), hold_s=0.5), threading.Event()
    assert keys_now.digests()
    monkeypatch.setattr(keys, "read_file", lambda _: release.wait(WAIT_S) and frozenset())
    wait_for(lambda: keys_now.digests() is None)
    release.set()
    assert "all requests are refused" in caplog.text


def test_a_replica_that_cannot_read_its_keys_starts_and_refuses(
    tmp_path: Path, follow: Callable[..., KeyFile], caplog: pytest.LogCaptureFixture
) -> None:
    keys = follow(str(tmp_path / "keys"))
    assert keys.digests() is None
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    (tmp_path / "keys").write_text(KEY)
    wait_for(lambda: keys.digests() == digests_of(KEY))


def test_a_location_is_logged_without_its_credentials() -> None:
    location = "s3://id:secret@bucket/keys?secret_key=secret"
    assert keys.without_credentials(location) == "s3://bucket/keys"
    with pytest.raises(ValueError, match="keys_file nothing://bucket") as raised:
        read_keys(location.replace("s3", "nothing"))
    assert "secret" not in str(raised.value)
