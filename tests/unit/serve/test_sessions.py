"""vLLM-Omni's messages on the WebSocket, as its documentation has them: the real backend, one
process."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from helpers.example import VOICE
from helpers.in_process import WAIT_S, asking
from helpers.speaking import assert_close
from sheen.serve.backend import Backend
from sheen.serve.config import ServeArgs
from sheen.serve.schema.requests import MAX_UTTERANCE_CHARACTERS
from sheen.text import delivery

# As vLLM-Omni's example of a client sends it.
CONFIG = {
    "type": "session.config",
    "speaker": "vivian",
    "task_type": "CustomVoice",
    "language": "Auto",
    "seed": 7,
}
STREAMED = CONFIG | {"response_format": "pcm", "stream_audio": True}
DONE = {"type": "input.done"}


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[Backend]:
    args = ServeArgs(
        auth="none", max_seconds=0.6, slots=2, max_queue=2, voice_aliases={"vivian": VOICE}
    )
    backend = Backend(args, str(checkpoint), codec_process=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[TestClient]:
    with asking(backend) as client:
        yield client


@pytest.fixture
def socket(client: TestClient) -> Iterator[Any]:
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        yield socket


def text(words: str) -> dict[str, str]:
    return {"type": "input.text", "text": words}


def send(socket: Any, *messages: dict[str, Any]) -> None:
    for message in messages:
        socket.send_json(message)


def received(socket: Any, last: str = "session.done") -> tuple[list[dict[str, Any]], list[bytes]]:
    """Messages to the next of this type, and frames of audio before it."""
    told: list[dict[str, Any]] = []
    frames = []
    while not (told and told[-1]["type"] == last):
        item = socket.receive()
        if item.get("bytes") is not None:
            frames.append(item["bytes"])
        else:
            told.append(json.loads(item["text"]))
    return told, frames


def posted(client: TestClient, **body: Any) -> bytes:
    response = client.post("/v1/audio/speech", json={"voice": VOICE, "seed": 7, **body})
    assert response.status_code == 200
    return response.content


def test_a_session_speaks_one_utterance_after_another_and_closes(
    client: TestClient, socket: Any
) -> None:
    send(socket, STREAMED, text("four "), text("two."), DONE, text("nine"), DONE)
    for index, words in enumerate(("four two.", "nine")):
        [start, done, end], frames = received(socket)
        where = {"utterance_index": index, "sentence_index": 0}
        form = {"format": "pcm", "sample_rate": 24_000, "channels": 1}
        assert start == {"type": "audio.start", **where, "sentence_text": words, **form}
        body = b"".join(frames)
        assert len(frames) > 1
        assert done | where == done
        assert (done["type"], done["total_bytes"], done["error"]) == (
            "audio.done",
            len(body),
            False,
        )
        assert done["finish_reason"] in ("stop", "length")
        assert end == {"type": "session.done", "utterance_index": index, "total_sentences": 1}
        alone = posted(client, input=words, response_format="pcm")
        assert_close(np.frombuffer(body, "<i2"), np.frombuffer(alone, "<i2"))
    send(socket, {"type": "session.close"})
    assert socket.receive() == {"type": "websocket.close", "code": 1000, "reason": ""}


def test_without_stream_audio_each_part_is_one_whole_file(client: TestClient, socket: Any) -> None:
    send(socket, CONFIG, text("four two."), DONE)
    [start, _, _], frames = received(socket)
    assert start["format"] == "wav"
    [body] = frames
    samples, rate = soundfile.read(io.BytesIO(body), dtype="int16")
    expected, _ = soundfile.read(
        io.BytesIO(posted(client, input="four two.", stream=False, response_format="wav")),
        dtype="int16",
    )
    assert rate == 24_000
    assert_close(samples, expected)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["sentence", "clause"])
def test_sentences_are_parts_that_are_spoken_before_the_text_has_ended(
    socket: Any, granularity: str
) -> None:
    send(socket, STREAMED | {"split_granularity": granularity}, text("four two. seven "))
    first, _ = received(socket, "audio.done")
    send(socket, text("nine"), DONE)
    second, _ = received(socket)
    assert [first[0]["sentence_text"], second[0]["sentence_text"]] == ["four two.", "seven nine"]
    assert [first[-1]["sentence_index"], second[-2]["sentence_index"]] == [0, 1]
    assert second[-1]["total_sentences"] == 2


def test_a_flush_of_nothing_has_no_sentences(socket: Any) -> None:
    send(socket, CONFIG, DONE, text(""), DONE, text("---"), DONE)
    assert [received(socket)[0][-1]["total_sentences"] for _ in range(3)] == [0, 0, 1]


def test_settings_do_not_change_within_an_utterance_and_nothing_of_it_is_lost(socket: Any) -> None:
    send(socket, STREAMED, text("four "), CONFIG | {"voice": "am_onyx"}, text("two"), DONE)
    told, _ = received(socket)
    assert told[0]["type"] == "error"
    assert "send input.done first" in told[0]["message"]
    assert told[1]["sentence_text"] == "four two"
    assert told[1]["format"] == "pcm"


def test_a_part_that_fails_says_so_and_the_session_goes_on(socket: Any) -> None:
    send(socket, STREAMED | {"voice": "nobody"}, text("four"), DONE, STREAMED, text("two"), DONE)
    (start, error, done, end), frames = received(socket)
    assert not frames
    assert (start["type"], done["type"], end["type"]) == (
        "audio.start",
        "audio.done",
        "session.done",
    )
    assert "unknown voice 'nobody'" in error["message"]
    assert error["error"]["code"] == "voice_not_found"
    assert (done["error"], done["total_bytes"]) == (True, 0)
    assert received(socket)[0][1]["error"] is False


def test_the_parts_of_an_utterance_share_the_limit_of_pauses(
    socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "MAX_PAUSES_S", 0.5)
    sentences = STREAMED | {"split_granularity": "sentence"}
    for _ in range(2):  # each utterance anew
        send(socket, sentences, text("[pause:0.3s]\n" * 2), DONE)
        told, _ = received(socket)
        failures = [message for message in told if message["type"] == "error"]
        assert [failure["error"]["code"] for failure in failures] == ["invalid_mark"]
        assert "together" in failures[0]["message"]


def test_an_utterance_that_is_too_long_is_not_spoken_with_a_hole_in_it(socket: Any) -> None:
    half = text("x " * (MAX_UTTERANCE_CHARACTERS // 4))
    send(socket, STREAMED, half, half, text("four"), text("two"), DONE, text("nine"), DONE)
    told, frames = received(socket)
    assert [message["type"] for message in told] == ["error", "session.done"]
    assert (told[-1]["total_sentences"], frames) == (0, [])
    assert received(socket)[0][0]["sentence_text"] == "nine"


@pytest.mark.parametrize(
    "messages",
    [
        [text("four")],
        [CONFIG, {"type": "text", "text": "four"}],
        [CONFIG, {"type": "cancel"}],
        [{"type": "start"}, text("four")],
        [{"type": "start"}, CONFIG],
        [CONFIG | {"speed": 9}],
        [CONFIG | {"split_granularity": "word"}],
        [CONFIG, {"type": "input.text", "text": 7}],
    ],
)
def test_what_a_session_cannot_follow_it_says(socket: Any, messages: list[dict[str, Any]]) -> None:
    send(socket, *messages)
    told = socket.receive_json()
    assert told["type"] == "error"
    assert told["message"] == told["error"]["message"]


def test_a_client_that_leaves_gives_its_place_back(client: TestClient, backend: Backend) -> None:
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        send(socket, STREAMED, text("four two. " * 9), DONE, text("nine"), DONE)
        assert received(socket, "audio.start")
        assert socket.receive()["bytes"]
        assert backend.admission.inside == 1
    deadline = time.monotonic() + WAIT_S
    while backend.admission.inside and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not backend.admission.inside
