"""Uploaded voices and references over HTTP, in one process: what is kept, spoken, refused."""

import asyncio
import base64
import gc
import http.server
import json
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from fastapi import Request, Response
from starlette.testclient import TestClient

from helpers.example import CHECKPOINT, VOICE, VOICES, clips_of
from helpers.in_process import openai_client, speech_app
from helpers.recogniser import tiny_en
from sheen.audio.io import encode_audio
from sheen.engine.types import RequestError
from sheen.scoring.wer import error_rate, normalize_english
from sheen.serve.access.middleware import Gate, set_gate
from sheen.serve.answers.batch import answer_batch
from sheen.serve.answers.responses import answer
from sheen.serve.backend import Backend
from sheen.serve.config import BATCH, ServeArgs
from sheen.serve.errors import APIError
from sheen.serve.request_log import SCOPE_KEY, RequestRecord, close_record, record_of
from sheen.serve.schema.answers import CreatedVoice, Voices
from sheen.serve.schema.requests import BatchRequest, SpeechRequest
from sheen.serve.voices.folder import FolderFull, StoredVoice, VoiceFolder, is_name, voice_id
from sheen.serve.voices.reference_fields import check_transcript, decode_data_url, fetch
from sheen.serve.voices.routes import delete, list_voices, read_form, upload
from sheen.serve.voices.shared_work import MAX_WAITING, SharedWork
from sheen.serve.word_times import Aligner
from sheen.storage import files

MOST = 400_000
TEXT = "four two seven"
FAR_MORE = "Far more than anybody says in two seconds. " * 5
SPOKEN = {"model": "sheen", "input": "four two", "seed": 1, "response_format": "pcm"}


def recording(seconds: float = 2.0, height: float = 0.4) -> bytes:
    at = np.arange(round(seconds * 24_000)) / 24_000
    wave = height * np.sin(2 * np.pi * 150 * at) * (1 + np.sin(2 * np.pi * 3 * at)) / 2
    return encode_audio(wave.astype(np.float32), 24_000, "WAV")


def data_url(data: bytes) -> str:
    return "data:audio/wav;base64," + base64.b64encode(data).decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("voices") / "kept"


@pytest.fixture(scope="module")
def backend(folder: Path) -> Iterator[Backend]:
    args = ServeArgs(
        auth="none", max_seconds=0.6, slots=2, max_queue=2,
        voices_folder=str(folder), ref_audio=True, reference_form="one-turn", max_voices=3,
        max_recording_bytes=MOST,
    )  # fmt: skip
    backend = Backend(args, str(CHECKPOINT), codec_process=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[TestClient]:
    app = speech_app(backend)

    @app.get("/v1/audio/voices")
    async def voices() -> Voices:
        return await list_voices(backend.references, backend.capabilities.voices)

    @app.post("/v1/audio/voices")
    async def upload_voice(request: Request) -> CreatedVoice:
        return await upload(backend.references, request)

    @app.delete("/v1/audio/voices/{name}")
    async def delete_voice(name: str) -> Response:
        return await delete(backend.references, name)

    set_gate(Gate(None))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    set_gate(Gate())


def sent(client: TestClient, data: bytes | None = None, **fields: str | None) -> Any:
    form = {"name": "Alice", "consent": "cons_1", "ref_text": TEXT} | fields
    sample = ("alice.wav", recording() if data is None else data, "audio/wav")
    return client.post(
        "/v1/audio/voices",
        data={name: value for name, value in form.items() if value is not None},
        files={"audio_sample": sample},
    )


def spoken(client: TestClient, **body: Any) -> bytes:
    answer = client.post("/v1/audio/speech", json=SPOKEN | body)
    assert answer.status_code == 200, answer.text
    assert answer.content
    return bytes(answer.content)


def batch_of_one(client: TestClient, request: dict[str, Any]) -> bytes:
    settings = dict(request)
    body = {"items": [{"input": settings.pop("input")}], **settings}
    [result] = client.post(BATCH, json=body).json()["results"]
    return base64.b64decode(result["audio_data"])


def error(answer: Any, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    fields: dict[str, Any] = answer.json()["error"]
    return fields


@pytest.mark.slow
def test_a_voice_is_kept_listed_spoken_and_deleted(
    client: TestClient, backend: Backend, folder: Path
) -> None:
    created = sent(client, speaker_description="a sine").json()
    shown = {
        "id": voice_id("alice"), "name": "alice", "consent": "cons_1", "mime_type": "audio/wav",
        "created_at": created["created_at"], "file_size": len(recording()), "ref_text": TEXT,
        "speaker_description": "a sine",
    }  # fmt: skip
    assert created == {
        "id": shown["id"], "object": "audio.voice", "name": "alice", "success": True,
        "created_at": shown["created_at"], "voice": shown,
    }  # fmt: skip
    kept = client.get("/v1/audio/voices").json()
    assert kept["uploaded_voices"] == [shown]
    *own, last = kept["voices"]
    assert own == [{"id": name, "name": name} for name in backend.capabilities.voices]
    assert {voice["name"] for voice in own} == set(VOICES)
    assert last == {"id": shown["id"], "name": "alice"}
    assert [path.read_bytes() for path in folder.glob("*.recording")] == [recording()]

    alike = [
        spoken(client, voice="Alice"),
        spoken(client, voice=shown["id"]),
        spoken(client, voice={"id": shown["id"]}),
        spoken(client, voice="alice", ref_text=TEXT),
        spoken(client, ref_audio=shown["id"]),
        spoken(client, references=[{"audio_path": data_url(recording()), "text": TEXT}]),
        spoken(client, voice=VOICE, ref_audio=data_url(recording()), ref_text=TEXT),
        openai_client(client).audio.speech.create(
            model="tts-1", input="four two", voice={"id": shown["id"]}, response_format="pcm",
            extra_body={"seed": 1},
        ).read(),
        batch_of_one(client, SPOKEN | {"voice": "alice"}),
    ]  # fmt: skip
    assert len(set(alike)) == 1, "one recording, however it is named"
    assert alike[0] != spoken(client, voice=VOICE)
    wrong = client.post("/v1/audio/speech", json=SPOKEN | {"voice": "alice", "ref_text": FAR_MORE})
    assert error(wrong)["param"] == "ref_text"

    assert backend.capabilities.listed_voices == [], "the schema may not list the model's alone"
    deleted = client.delete("/v1/audio/voices/Alice")
    assert deleted.json() == {"success": True, "message": "Voice 'alice' deleted"}
    assert list(folder.iterdir()) == []
    assert error(client.post("/v1/audio/speech", json=SPOKEN | {"voice": "alice"}))["code"] == (
        "voice_not_found"
    )
    again = client.delete("/v1/audio/voices/alice")
    assert (again.status_code, again.json()) == (
        404, {"success": False, "error": "no uploaded voice 'alice'"},
    )  # fmt: skip
    assert client.get("/v1/audio/voices").json()["uploaded_voices"] == []


@pytest.mark.slow
def test_what_is_being_spoken_is_not_affected_by_a_deletion(
    client: TestClient, backend: Backend
) -> None:
    """Neither the later chunks of a text, nor the later items of a batch."""
    text = "four two. Seven nine."
    speech = SpeechRequest.model_validate(SPOKEN | {"voice": "alice", "input": text})
    items = [{"input": word} for word in ("four", "two", "seven")]
    batch = BatchRequest.model_validate(SPOKEN | {"voice": "alice", "items": items})

    async def body() -> dict[str, Any]:
        return {"type": "http.request", "body": batch.model_dump_json().encode()}

    async def heard(respond: Callable[[Request], Awaitable[Any]], deleted: bool) -> bytes:
        record = RequestRecord()
        scope = {"type": "http", "path": "/", "headers": [], SCOPE_KEY: record}
        try:
            parts = (await respond(Request(scope, body))).body_iterator
            found = [await anext(parts) for _ in range(2)]  # of a batch, its head and one result
            if deleted:
                assert await backend.references.delete("alice") is not None
            found += [part async for part in parts]
        finally:
            close_record(record)
        return b"".join(part.encode() if isinstance(part, str) else part for part in found)

    assert sent(client).status_code == 200
    [whole, cut] = [
        asyncio.run(heard(lambda request: answer(backend, speech, record_of(request), 600), gone))
        for gone in (False, True)
    ]
    assert cut == whole
    assert sent(client).status_code == 200
    answered = json.loads(
        asyncio.run(heard(lambda request: answer_batch(backend, batch, request), True))
    )
    assert answered["succeeded"] == 3, answered["results"]


@pytest.mark.slow
def test_another_upload_of_a_name_takes_its_place_and_the_number_is_bounded(
    client: TestClient, folder: Path
) -> None:
    for name in ("one", "two", "three"):
        assert sent(client, name=name).status_code == 200
    assert error(sent(client, name="four"))["code"] == "too_many_voices"
    first = spoken(client, voice="two")
    other = sent(client, recording(1.5, 0.3), name="Two").json()
    assert spoken(client, voice="two") != first
    listed = client.get("/v1/audio/voices").json()["uploaded_voices"]
    assert {voice["name"] for voice in listed} == {"one", "two", "three"}
    assert other["voice"] in listed
    assert len(list(folder.iterdir())) == 6
    for name in ("one", "two", "three"):
        client.delete(f"/v1/audio/voices/{name}")


@pytest.mark.parametrize(
    ("changes", "param", "expected"),
    [
        ({"name": "a/b"}, "name", "letters, digits"),
        ({"name": "a..b"}, "name", "no .."),
        ({"name": ".."}, "name", "no .."),
        ({"name": "x" * 65}, "name", "1 to 64"),
        ({"name": VOICE.upper()}, "name", f"the model has a voice '{VOICE}'"),
        ({"name": "alloy"}, "name", "choose another"),
        ({"name": None}, "name", "Field required"),
        ({"consent": None}, "consent", "Field required"),
        ({"consent": " "}, "consent", "who allowed"),
        ({"consent": "c" * 1001}, "consent", "more than 1000"),
        ({"speaker_description": "c" * 1001}, "speaker_description", "more than 1000"),
        ({"ref_text": "c" * 1001, "data": b"text"}, "ref_text", "more than 1000"),
        ({"ref_text": None}, "ref_text", "transcript of the recording"),
        (
            {"ref_text": FAR_MORE},
            "ref_text",
            "Give all of its",
        ),
        ({"data": recording(0.2)}, "audio_sample", "expected 1 to 30 s"),
        ({"data": recording(height=0.001)}, "audio_sample", "silent"),
        ({"data": recording(height=3.0)}, "audio_sample", "clipped"),
        ({"data": b"text"}, "audio_sample", "the recording cannot be read"),
    ],
)
def test_what_is_no_voice_is_refused_and_nothing_is_kept(
    client: TestClient, folder: Path, changes: dict[str, Any], param: str, expected: str
) -> None:
    fields = error(sent(client, **changes))
    assert fields["param"] == param
    assert expected in fields["message"]
    assert not list(folder.glob("*"))


def test_a_recording_that_is_too_large_or_too_long_is_refused(client: TestClient) -> None:
    assert error(sent(client, bytes(MOST + 1)), 413)["param"] == "audio_sample"
    long = encode_audio(np.tile(np.float32([0.1, -0.1]), 30 * 24_000), 24_000, "FLAC")
    assert len(long) < MOST
    assert "longer than 30 s" in error(sent(client, long))["message"]


@pytest.mark.slow
def test_openais_client_uploads_a_voice_without_its_words(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears words for the server's word times hears these too."""
    clip = next(clip for clip in clips_of(VOICE) if clip.seconds > 2.5)
    aligner = Aligner(tiny_en(), "en")
    monkeypatch.setattr(backend.references, "_aligner", aligner)
    try:
        sample = ("bob.opus", clip.path.read_bytes(), "audio/ogg")
        voice = openai_client(client).audio.voices.create(
            name="Bob", audio_sample=sample, consent="cons_1234"
        )
        kept = client.get("/v1/audio/voices").json()["uploaded_voices"][0]
        said, heard = map(normalize_english, (clip.text, kept["ref_text"]))
        assert error_rate("word", [said], [heard]).rate < 0.3
        assert spoken(client, voice={"id": voice.id})
        own = data_url(clip.path.read_bytes())
        assert spoken(client, ref_audio=own) == spoken(client, voice="bob")
        assert spoken(client, ref_audio=own, ref_text=clip.text)
        other = "".join(sorted(clip.text, reverse=True)) + " zebra"
        for refused in (
            client.post("/v1/audio/speech", json=SPOKEN | {"ref_audio": own, "ref_text": other}),
            sent(client, clip.path.read_bytes(), name="eve", ref_text=other),
        ):
            fields = error(refused)
            assert fields["param"] == "ref_text"
            assert kept["ref_text"][:20] in fields["message"]
        silent = sent(client, recording(height=0.001), name="eve", ref_text=None)
        assert error(silent)["param"] == "audio_sample"
    finally:
        aligner.close()
        client.delete("/v1/audio/voices/bob")


def test_a_page_of_another_host_may_not_upload(client: TestClient) -> None:
    foreign = client.post("/v1/audio/voices", headers={"origin": "https://evil.example"})
    assert error(foreign, 403)["code"] == "foreign_origin"
    assert error(client.post("/v1/audio/voices", json={}), 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("body", "param", "expected"),
    [
        ({"ref_audio": data_url(recording())}, "ref_text", "transcript of the recording"),
        ({"ref_audio": "", "ref_text": TEXT}, "ref_audio", "at least 1"),
        ({"ref_text": TEXT}, "ref_text", "without ref_audio"),
        ({"ref_text": TEXT, "voice": VOICE}, "ref_text", "without ref_audio"),
        ({"ref_text": TEXT, "voice": "nobody"}, "voice", "unknown voice"),
        ({"references": [{"audio_path": "bob"}] * 2}, "references", "at most 1"),
        ({"ref_audio": "data:audio/wav;base64,!!", "ref_text": TEXT}, "ref_audio", "not base64"),
        ({"ref_audio": "data:nothing", "ref_text": TEXT}, "ref_audio", "comma"),
        ({"ref_audio": data_url(bytes(MOST + 1)), "ref_text": TEXT}, "ref_audio", "more than"),
        ({"ref_audio": data_url(recording(0.2)), "ref_text": TEXT}, "ref_audio", "1 to 30 s"),
        ({"ref_audio": "bob", "ref_text": TEXT}, "ref_audio", "no uploaded voice 'bob'"),
        ({"ref_audio": "http://10.0.0.1/a.wav", "ref_text": TEXT}, "ref_audio", "no URL of 10.0"),
        ({"ref_audio": "file:///etc/passwd", "ref_text": TEXT}, "ref_audio", "no URL of this"),
        ({"voice": "../../etc/passwd"}, "voice", "unknown voice"),
    ],
)
def test_a_reference_that_does_not_do_is_refused(
    client: TestClient, body: dict[str, Any], param: str, expected: str
) -> None:
    fields = error(client.post("/v1/audio/speech", json=SPOKEN | body))
    assert fields["param"] == param
    assert expected in fields["message"]


@pytest.mark.slow
def test_all_of_it_is_off_unless_it_is_configured() -> None:
    args = ServeArgs(auth="none", max_seconds=1.0, slots=1)
    assert args.body("/v1/audio/speech").size == args.body("/v1/audio/voices").size == 256 * 1024
    backend = Backend(args, str(CHECKPOINT), codec_process=False)
    try:
        off = SpeechRequest.model_validate(SPOKEN | {"ref_audio": data_url(recording())})
        with pytest.raises(APIError, match=r"args\.ref_audio") as refusal:
            asyncio.run(backend.reference(off))
        assert refusal.value.code == "references_off"
        named = SpeechRequest.model_validate(SPOKEN | {"voice": "alice"})
        assert asyncio.run(backend.reference(named)) is None
        assert asyncio.run(list_voices(backend.references, [VOICE])).uploaded_voices == []
    finally:
        backend.close()
    with pytest.raises(ValueError, match=r"--reference-share.*args\.reference_form"):
        Backend(args.model_copy(update={"ref_audio": True}), str(CHECKPOINT))
    on = args.model_copy(update={"ref_audio": True, "voices_folder": "/voices"})
    assert on.body("/v1/audio/speech").size > 13 * 2**20
    assert on.body("/v1/audio/voices").size > 10 * 2**20


# The folder


def stored(name: str = "bob", **changes: Any) -> StoredVoice:
    fields = {
        "id": voice_id(name), "name": name, "consent": "c", "created_at": 1, "mime_type": "a/b",
        "file_size": 3, "sha256": "ab" * 32, "ref_text": "hi", "codec_sha256": "cd" * 32,
        "codes": [[1], [2, 3], [4, 5, 6, 7]],
    }  # fmt: skip
    return StoredVoice.model_validate(fields | changes)


def test_replicas_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sheen.serve.voices.folder.FRESH_S", 0.0)
    one, other = VoiceFolder(str(tmp_path / "new")), VoiceFolder(f"file://{tmp_path}/new")
    assert one.all() == other.all() == []
    one.put(stored(), b"old", 1)
    assert other.get("Bob") == other.get(voice_id("BOB ")) == stored()
    other.put(stored(sha256="ef" * 32), b"new", 1)
    assert one.all() == [stored(sha256="ef" * 32)]
    assert one.recording(one.all()[0]) == b"new"
    (tmp_path / "new" / f"{voice_id('broken')}.voice.json").write_text("{")
    assert one.all() == [stored(sha256="ef" * 32)], "one record that is broken hides no other"
    assert one.delete("bob") == stored(sha256="ef" * 32)
    assert other.get("bob") is None
    assert other.delete("bob") is None


def test_a_listing_neither_loses_nor_revives_what_changed_since_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = VoiceFolder(str(tmp_path)), VoiceFolder(str(tmp_path))
    read_ahead = files.map_ahead
    for name in ("bob", "eve"):
        one.put(stored(name), b"x", 9)

    def changed_meanwhile(read: Any, keys: list[str]) -> list[Any]:
        found = list(read_ahead(read, keys))
        one.put(stored("new"), b"x", 9)
        one.put(stored("eve", consent="d"), b"x", 9)
        assert one.delete("bob") is not None
        return found

    with monkeypatch.context() as patch:
        patch.setattr(files, "map_ahead", changed_meanwhile)
        one.all()
    kept = [stored("eve", consent="d"), stored("new")]
    assert one.all() == other.all() == kept
    assert one.get("bob") is None
    other.put(stored("bob"), b"x", 9)
    assert one.get("bob") == stored("bob"), "known at once, although it was deleted here"
    with pytest.raises(FolderFull):
        one.put(stored("ann"), b"x", 3)
    one.put(stored("eve"), b"x", 3)


def test_names_are_words_and_never_paths() -> None:
    assert all(map(is_name, ["alice", "Zoë 2", "长乐", "a.b-c_d", "x"]))
    bad = ["", " ", "a/b", "..", "a..b", ".a", "a.", "a\\b", "a\0b", "-a", "<b>", "a" * 65]
    assert not any(map(is_name, bad))


@pytest.mark.parametrize(
    ("text", "heard", "language", "refused"),
    [
        ("Four two seven.", "427", "en", False),
        ("The coffee costs five dollars.", "the coffee cost $5", "en", False),
        ("Er kommt um drei Uhr.", "Er kommt um 3 Uhr.", "de", False),
        ("Er kommt um drei Uhr.", "Sie ging schon gestern fort.", "de", True),
        ("The coffee is ready now.", "My brother lives in Boston.", "en", True),
        ("The coffee is ready now.", "", "en", True),
        ("The coffee is ready now.", "My brother lives in Boston.", None, False),
    ],
)
def test_a_text_is_refused_if_other_words_are_heard(
    text: str, heard: str, language: str | None, refused: bool
) -> None:
    if not refused:
        check_transcript(text, heard, language)
        return
    with pytest.raises(APIError) as refusal:
        check_transcript(text, heard, language)
    assert refusal.value.param == "ref_text"
    assert repr(heard) in str(refusal.value)


# Forms, data URLs, other hosts


@pytest.mark.parametrize("content", [b"", b"\r\n", b"--x", b"\r\n--", bytes(range(256)) * 3])
def test_a_form_gives_back_what_went_in(content: bytes) -> None:
    body = (
        b'preamble\r\n--x1\r\nContent-Disposition: form-data; name="a"\r\n\r\n'
        + "Zoë".encode()
        + b'\r\n--x1 \r\ncontent-disposition: form-data; name="f"; filename="f.wav"\r\n'
        + b"Content-Type: audio/wav\r\n\r\n"
        + content
        + b"\r\n--x1--\r\nepilogue"
    )
    fields = read_form("multipart/form-data; boundary=x1", body)
    assert fields["a"].text("a") == "Zoë"
    assert (fields["f"].content, fields["f"].media_type) == (content, "audio/wav")
    with pytest.raises(APIError, match="last boundary"):
        read_form("multipart/form-data; boundary=x1", body[:-20])


DISPOSITION = b"Content-Disposition: form-data; name=a"


@pytest.mark.parametrize(
    ("parts", "content_type", "status"),
    [
        ([DISPOSITION] * 17, "", 400),
        ([DISPOSITION + b"; a=b" * 400], "", 400),
        ([DISPOSITION + b"\r\nContent-Type: " + b"(" * 5000], "", 400),
        ([b"Content-Disposition: form-data; name*1*=a; name*=b"], "", 400),
        ([DISPOSITION], "; a=b" * 400, 415),
        ([DISPOSITION], "; b=" + "(" * 5000, 415),
        ([DISPOSITION], "; boundary*1*=a; boundary*=b", 415),
    ],
)
def test_a_form_that_would_take_long_to_read_is_refused(
    parts: list[bytes], content_type: str, status: int
) -> None:
    body = b"".join(b"\r\n--x1\r\n" + part + b"\r\n\r\n" for part in parts) + b"\r\n--x1--"
    boundary = "" if "boundary" in content_type else "; boundary=x1"
    with pytest.raises(APIError) as refusal:
        read_form("multipart/form-data" + boundary + content_type, body)
    assert refusal.value.status == status


def test_a_recording_that_cannot_be_read_leaves_nothing_in_memory() -> None:
    class Decoded:
        pass

    made: list[weakref.ref[Decoded]] = []

    def fail() -> str:
        decoded = Decoded()
        made.append(weakref.ref(decoded))
        raise RequestError("ref_audio", f"{decoded} is silent")

    async def ask() -> None:
        with ThreadPoolExecutor(1) as pool:
            work: SharedWork[str] = SharedWork("encoded")
            for data in (b"a", b"b"):
                waiting = [work.result(data, lambda: pool.submit(fail)) for _ in range(2)]
                results = await asyncio.gather(*waiting, return_exceptions=True)
                assert [type(result) for result in results] == [RequestError] * 2
                del results
            assert await work.result(b"c", lambda: pool.submit(str)) == ""
            gc.collect()
            assert made
            assert not any(each() for each in made)

    asyncio.run(ask())


def test_a_data_url_may_be_plain() -> None:
    assert decode_data_url("data:audio/wav,a%20b", 3) == b"a b"
    with pytest.raises(APIError, match="more than 2 bytes"):
        decode_data_url("data:audio/wav,a%20b", 2)


class Host(NamedTuple):
    """A server of recordings on this machine."""

    name: str
    asked: list[str]
    """The paths that were asked for."""
    go_on: threading.Event
    """Set it to let /slow.wav be answered."""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asked, go_on = list[str](), threading.Event()
    recordings = {"/a.wav": b"sound", "/slow.wav": recording(), "/reference.wav": recording()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/slow.wav":
                go_on.wait()
            found = {"/moved": 302}.get(self.path, 200 if self.path in recordings else 404)
            self.send_response(found)
            self.send_header("Location", "/a.wav")
            self.end_headers()
            self.wfile.write(recordings.get(self.path, b""))

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Host(f"127.0.0.1:{server.server_address[1]}", asked, go_on)
    go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def allowed(backend: Backend, host: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host that the server of `backend` allows."""
    args = backend.references._args.model_copy(update={"ref_audio_hosts": [host.name]})
    monkeypatch.setattr(backend.references, "_args", args)
    return host


def test_a_host_that_stalls_delays_its_own_requests_alone(
    backend: Backend, allowed: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheen.serve.voices.reference_fields.FETCH_S", 600.0)
    fields = {"ref_audio": f"http://{allowed.name}/slow.wav", "ref_text": TEXT}
    body = SpeechRequest.model_validate(SPOKEN | fields)

    async def ask() -> None:
        with pytest.raises(APIError) as late:
            await answer(backend, body, RequestRecord(), 0.05)
        assert (late.value.status, late.value.code) == (503, "timeout")
        stalled = [asyncio.create_task(backend.reference(body)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)
        assert await backend.references.uploaded("nobody") is None
        with pytest.raises(APIError) as refusal:
            await backend.reference(body)
        assert refusal.value.status == 429
        assert not any(task.done() for task in stalled)
        allowed.go_on.set()
        assert all(await asyncio.gather(*stalled))

    asyncio.run(ask())


@pytest.mark.slow
def test_vllm_omnis_documented_requests_to_clone_a_voice_are_answered(
    client: TestClient, allowed: Host
) -> None:
    """As they are but for the host."""
    clone = {
        "task_type": "Base",
        "ref_audio": f"http://{allowed.name}/reference.wav",
        "ref_text": "Original transcript of the reference audio",
    }
    text = {"input": "Hello, this is a cloned voice"}
    response = client.post("/v1/audio/speech", json=text | clone | {"non_streaming_mode": True})
    assert (response.status_code, bool(response.content)) == (200, True)
    assert "x-sheen-ignored" not in response.headers
    allowed.asked.clear()
    words = ("First sentence in the cloned voice.", "Second sentence in the cloned voice.")
    batch = client.post(BATCH, json={"items": [{"input": each} for each in words], **clone}).json()
    assert batch["succeeded"] == 2
    assert allowed.asked == ["/reference.wav"], "once for all"
    for result in batch["results"]:
        usage = result["usage"]
        parts = usage["input_token_details"]
        assert parts["audio_tokens"] >= 2 * 82 - 7  # 82 a second, in each chunk
        assert parts["text_tokens"] > 0
        assert sum(parts.values()) == usage["input_tokens"]
    sample = ("voice_sample.wav", recording(), "application/octet-stream")
    form = {
        "consent": "user_consent_id", "name": "custom_voice_1",
        "ref_text": "The exact transcript of the audio sample.",
        "speaker_description": "warm narrator",
    }  # fmt: skip
    created = client.post("/v1/audio/voices", data=form, files={"audio_sample": sample}).json()
    assert created["success"] is True
    assert created["voice"].items() >= form.items()
    assert spoken(client, voice="custom_voice_1")
    assert client.delete("/v1/audio/voices/custom_voice_1").json()["success"] is True


@pytest.mark.slow
def test_a_file_comes_from_hosts_that_are_allowed_alone(host: Host) -> None:
    name = host.name
    assert fetch(f"http://{name}/a.wav", [name], 5) == b"sound"
    refused: list[tuple[str, Callable[[], bytes]]] = [
        ("more than 4 bytes", lambda: fetch(f"http://{name}/a.wav", [name], 4)),
        ("answered 302", lambda: fetch(f"http://{name}/moved", [name], 5)),
        ("answered 404", lambda: fetch(f"http://{name}/b.wav", [name], 5)),
        ("takes them from example.org", lambda: fetch(f"http://{name}/a.wav", ["example.org"], 5)),
        ("no URL of 127", lambda: fetch(f"http://{name}@127.0.0.2/a.wav", [name], 5)),
        ("no URL", lambda: fetch(f"ftp://{name}/a.wav", [name], 5)),
        ("did not return", lambda: fetch("http://127.0.0.1:9/a.wav", ["127.0.0.1:9"], 5)),
        ("%C3%A4", lambda: fetch(f"http://{name}/ä.wav", [name], 5)),
        ("not a URL", lambda: fetch(f"http://{name}\n/a.wav", [name], 5)),
    ]
    for expected, call in refused:
        with pytest.raises(APIError, match=expected) as refusal:
            call()
        assert refusal.value.param == "ref_audio"
