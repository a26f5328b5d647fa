"""Answers of the speech routes as clients read them, in one process: how speech ended, batches,
and the requests of other servers' documentation."""

import asyncio
import base64
import contextlib
import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from helpers.example import CHECKPOINT, VOICE
from helpers.in_process import asking, events, openai_client
from sheen.serve import request_log
from sheen.serve.access.admission import Admission
from sheen.serve.answers.batch import Batch
from sheen.serve.backend import Backend
from sheen.serve.config import BATCH, ClientLimits, ServeArgs
from sheen.serve.request_log import RequestRecord
from sheen.serve.schema.requests import MAX_BATCH_CHARACTERS, MAX_BATCH_ITEMS, BatchRequest
from sheen.text import delivery

ENDS = {"model": "sheen", "input": "Good morning.", "voice": VOICE, "seed": 1}
ENDLESS = ENDS | {"temperature": 5.0, "top_p": 1.0, "top_k": 0}
"""Of tokens that are drawn almost evenly, hardly one in 4,000 ends the speech."""


@contextmanager
def opened(folder: Path, max_seconds: float, **args: Any) -> Iterator[Backend]:
    fields = ServeArgs(auth="none", max_seconds=max_seconds, slots=2, max_queue=2, **args)
    backend = Backend(fields, str(folder), codec_process=False)
    try:
        yield backend
    finally:
        backend.close()


def test_a_model_is_served_in_the_dtype_of_the_arguments_which_the_log_names(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "sheen"), opened(checkpoint, 0.3, dtype="bfloat16") as made:
        assert made.voice.dtype == "bfloat16"
    assert f"serving {checkpoint} on cpu in bfloat16, voices" in caplog.text


@pytest.fixture(scope="module")
def shipped() -> Iterator[TestClient]:
    """Of a voice that ends by itself."""
    with opened(CHECKPOINT, 1.5) as backend, asking(backend) as client:
        yield client


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[Backend]:
    aliases = {"vivian": VOICE, "ryan": "am_onyx"}
    with opened(checkpoint, 0.7, voice_aliases=aliases) as backend:
        yield backend


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[TestClient]:
    with asking(backend) as client:
        yield client


def speak(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/audio/speech", json=body)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    ("request_", "reason"),
    [(ENDS, "stop"), (ENDLESS, "length"), (ENDS | {"input": "---"}, "stop")],
    ids=["stop", "length", "no word"],
)
def test_a_whole_answer_and_the_last_event_say_how_speech_ended(
    shipped: TestClient, request_: dict[str, Any], reason: str
) -> None:
    whole = speak(shipped, **request_, stream=False)
    assert whole.headers["X-Finish-Reason"] == reason
    streamed = speak(shipped, **request_, stream_format="sse")
    *_, done = events(streamed.content)
    assert (done["type"], done["finish_reason"]) == ("speech.audio.done", reason)
    assert "X-Finish-Reason" not in streamed.headers  # they are sent before anybody knows


@pytest.mark.slow
def test_openais_client_names_a_voice_by_its_id(client: TestClient) -> None:
    official = openai_client(client)
    voices: list[Any] = [VOICE, {"id": VOICE}, {"id": "am_onyx"}]
    bodies = [
        official.audio.speech.create(
            model="tts-1", input="four", voice=voice, response_format="pcm", extra_body={"seed": 1}
        ).read()
        for voice in voices
    ]
    assert bodies[0]
    assert bodies[0] == bodies[1] != bodies[2]


# Batches


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[RequestRecord]:
    seen: list[RequestRecord] = []
    monkeypatch.setattr(request_log, "_listeners", [])
    request_log.listen(seen.append)
    return seen


def speak_batch(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(BATCH, json=body)
    assert response.status_code == 200, response.text
    read: dict[str, Any] = response.json()
    return read


def test_a_batch_gives_each_item_what_it_would_get_alone_and_an_error_where_it_is_wrong(
    client: TestClient, records: list[RequestRecord]
) -> None:
    shared = {"voice": VOICE, "seed": 1, "speed": 1.0}
    items: list[dict[str, Any]] = [
        {"input": "four"},
        {"input": "two", "voice": "am_onyx", "response_format": "pcm", "seed": None},
        {"input": ""},
        {"input": "four", "speed": 9},
        {"input": "four", "voice": "nobody"},
        {"text": "four"},
        {"input": "---"},
    ]
    answer = speak_batch(client, items=items, **shared)
    assert answer["id"].startswith("speech-batch-")
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (7, 3, 4)
    results = answer["results"]
    assert [result["index"] for result in results] == list(range(7))
    for index in (0, 1, 6):
        own = {name: value for name, value in items[index].items() if value is not None}
        alone = speak(client, **{"response_format": "wav"} | shared | own, stream=False)
        result = results[index]
        assert base64.b64decode(result["audio_data"]) == alone.content
        assert result["media_type"] == alone.headers["Content-Type"]
        assert result["finish_reason"] == alone.headers["X-Finish-Reason"]
        assert result["usage"]["output_tokens"] > 0 or index == 6
        assert "error" not in result
    for index, field in ((2, "input"), (3, "speed"), (4, "voice"), (5, "input")):
        assert results[index]["error"].startswith(f"{field}: ")
        assert "audio_data" not in results[index]
    # Each is counted for itself.
    logged = [(record.status, record.param) for record in records if record.path == BATCH]
    assert logged.count((200, None)) == 4  # the batch's own too
    assert {param for status, param in logged if status == 400} == {"input", "speed", "voice"}


def test_the_items_of_a_batch_share_the_limit_of_pauses(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_PAUSES_S", 0.5)
    results = speak_batch(client, items=[{"input": "[pause:0.3s]"}] * 3)["results"]
    assert sorted(result["status"] for result in results) == ["error", "error", "success"]
    assert all("together" in result.get("error", "together") for result in results)


def test_a_batch_with_an_unknown_voice_of_its_own_is_refused_whole(client: TestClient) -> None:
    """As its schema says, and as with every other setting of a batch."""
    for voice in ("nobody", {"id": "nobody"}):
        response = client.post(BATCH, json={"voice": voice, "items": [{"input": "four"}]})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "voice_not_found")


class Watched(Admission):
    """Knows how many requests were inside at most."""

    most = 0

    @contextmanager
    def enter(self, request: Any = None) -> Iterator[None]:
        with super().enter(request):
            self.most = max(self.most, self.inside)
            yield


@pytest.mark.slow
@pytest.mark.parametrize(("others", "most"), [(0, 2), (2, 3), (3, 4)])
def test_a_batch_has_one_place_and_the_slots_that_nobody_uses(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch, others: int, most: int
) -> None:
    admission = Watched(4, 2)
    monkeypatch.setattr(backend, "admission", admission)
    with contextlib.ExitStack() as stack:
        for _ in range(others):
            stack.enter_context(admission.enter())
        answer = speak_batch(client, items=[{"input": "four"}] * 4)
    assert answer["succeeded"] == 4
    assert (admission.most, admission.inside) == (most, 0)


def test_a_batch_that_finds_no_place_is_told_when_to_come_back(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "admission", Admission(1, 1))
    with backend.admission.enter():
        response = client.post(BATCH, json={"items": [{"input": "four"}]})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    "items",
    [
        [],
        [{"input": "four"}] * (MAX_BATCH_ITEMS + 1),
        [{"input": "x" * (MAX_BATCH_CHARACTERS // 10)}] * 11,
        ["four"],
        None,
    ],
)
def test_a_batch_of_no_or_too_many_items_is_refused(client: TestClient, items: object) -> None:
    response = client.post(BATCH, json={"items": items})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "items"


@pytest.mark.parametrize(
    "strange", ['"\\ud800"', "[" * 300 + "]" * 300, "[" * 900 + "]" * 900, "NaN", "1e999"]
)
def test_an_item_that_cannot_be_written_as_json_again_fails_alone(
    client: TestClient, strange: str
) -> None:
    items = f'{{"input": {strange}}}, {{"input": "---", "note": {strange}}}'
    response = client.post(
        BATCH,
        content=f'{{"items": [{items}], "task_type": {strange}}}',
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 200, response.text
    first, second = response.json()["results"]
    assert (first["status"], second["status"]) == ("error", "success")
    assert first["error"].startswith("input: ")


def test_the_longest_batch_fits_into_its_body() -> None:
    escaped = len("\\ud83d\\ude00") * MAX_BATCH_CHARACTERS
    assert ClientLimits().body(BATCH).size > escaped + 100_000 > ClientLimits().body("/").size


def test_a_batch_whose_client_leaves_is_given_up(
    backend: Backend, records: list[RequestRecord]
) -> None:
    async def leave() -> None:
        long = {"input": "four two. " * 9}
        batch = BatchRequest.model_validate({"items": [{"input": "---"}, *[long] * 5]})
        speaking = Batch(backend, batch, {"type": "http", "path": BATCH, "headers": []})
        assert (await anext(speaking.results())).status == "success"
        speaking.close()
        while backend.admission.inside:
            await asyncio.sleep(0.01)

    asyncio.run(leave())
    first, *others = [(record.status, record.finish_reason) for record in records]
    assert first == (200, "")
    assert 1 <= len(others) <= 2  # of those that had been begun
    assert set(others) == {(499, "cancelled")}


# The requests that vLLM-Omni documents, as they are


@pytest.mark.parametrize(
    "body",
    [
        {"input": "Hello, how are you?", "voice": "vivian", "language": "English"},
        {
            "input": "I am so excited!",
            "voice": "vivian",
            "instructions": "Speak with great enthusiasm",
        },
        {
            "input": "Hello world",
            "task_type": "VoiceDesign",
            "instructions": "A warm, friendly female voice with a gentle tone",
        },
    ],
)
def test_vllm_omnis_requests_are_answered(client: TestClient, body: dict[str, Any]) -> None:
    response = speak(client, **body)
    assert response.headers["Content-Type"] == "audio/mpeg"
    assert response.content


def test_vllm_omnis_requests_by_openais_client_are_answered(client: TestClient) -> None:
    assert (
        openai_client(client)
        .audio.speech.create(
            model="Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice",
            voice="vivian",
            input="Hello, how are you?",
        )
        .read()
    )


@pytest.mark.slow
def test_vllm_omnis_batches_are_answered(client: TestClient) -> None:
    shared = speak_batch(
        client,
        items=[{"input": "Hello, how are you?"}, {"input": "Goodbye, see you later!"}],
        voice="vivian",
        language="English",
    )
    own = speak_batch(
        client,
        items=[
            {"input": "Hello!", "voice": "vivian", "response_format": "mp3"},
            {"input": "你好！", "speaker": "ryan", "language": "Chinese"},
        ],
        response_format="wav",
    )
    for result in shared["results"] + own["results"][1:]:
        assert (result["status"], result["media_type"]) == ("success", "audio/wav")
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(result["audio_data"])))
        assert len(samples) > 0
        assert rate == 24_000
        assert np.isfinite(samples).all()
    assert own["results"][0]["media_type"] == "audio/mpeg"
