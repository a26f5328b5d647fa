"""Answers of the speech routes as clients read them, in one process: how speech ended."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from helpers.example import DIGITS
from helpers.in_process import asking, openai_client
from helpers.served import events
from sheen.serve.backend import Backend
from sheen.serve.config import ServeArgs

ENDS = {"model": "sheen", "input": "four", "voice": "slt", "seed": 1}
ENDLESS = ENDS | {"temperature": 5.0, "top_p": 1.0, "top_k": 0}
"""Of tokens that are drawn almost evenly, hardly one in 4,000 ends the speech."""


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    args = ServeArgs(auth="none", default_max_seconds=3.0, slots=2, max_queue=2)
    args = args.model_copy(update={"audio_process": False})
    backend = Backend(args, str(DIGITS / "voice"))
    yield backend
    backend.close()


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
    client: TestClient, request_: dict[str, Any], reason: str
) -> None:
    whole = speak(client, **request_, stream=False)
    assert whole.headers["X-Finish-Reason"] == reason
    *_, done = events(speak(client, **request_, stream_format="sse").content)
    assert (done["type"], done["finish_reason"]) == ("speech.audio.done", reason)
    # Its headers are sent before anybody knows.
    assert "X-Finish-Reason" not in speak(client, **request_).headers


def test_one_chunk_that_met_its_budget_is_enough(client: TestClient) -> None:
    long = speak(client, **ENDLESS | {"input": "four. two. four."}, stream=False)
    assert long.headers["X-Finish-Reason"] == "length"


def test_openais_client_names_a_voice_by_its_id(client: TestClient) -> None:
    official = openai_client(client)
    bodies = [
        official.audio.speech.create(
            model="tts-1", input="four", voice=voice, response_format="pcm", extra_body={"seed": 1}
        ).read()
        for voice in ("slt", {"id": "slt"}, {"id": "rms"})
    ]
    assert bodies[0]
    assert bodies[0] == bodies[1] != bodies[2]
