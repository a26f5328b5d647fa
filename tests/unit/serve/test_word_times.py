"""`word_timestamps` through every door: whose words, when they are heard, and what is refused. The
real backend and a real Whisper, which is untrained: how near its times are, a benchmark says
(benchmarks/word_times.py)."""

import asyncio
import base64
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from helpers.example import VOICE
from helpers.in_process import asking, events
from helpers.tiny_whisper import save_faster_whisper
from sheen.audio.samples import Samples
from sheen.engine.types import Span
from sheen.scoring.asr.transcript import Times
from sheen.serve.backend import Backend
from sheen.serve.config import BATCH, ServeArgs
from sheen.serve.word_times import Aligner, SpokenWords, WordTimes, written_words
from sheen.text.steps import TextPipeline

RATE = 1000
REQUEST = {"voice": VOICE, "seed": 7, "response_format": "pcm", "word_timestamps": True}


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return save_faster_whisper(tmp_path_factory.mktemp("whisper") / "tiny")


@pytest.fixture(scope="module")
def backend(checkpoint: Path, whisper: Path) -> Iterator[Backend]:
    args = ServeArgs(auth="none", max_seconds=0.7, slots=2, max_queue=2, aligner=str(whisper))
    backend = Backend(args, str(checkpoint), codec_process=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[TestClient]:
    with asking(backend) as client:
        yield client


def speak(client: TestClient, text: str, **fields: Any) -> Any:
    response = client.post("/v1/audio/speech", json={**REQUEST, "input": text, **fields})
    assert response.status_code == 200, response.text
    return response


def assert_words(words: list[dict[str, Any]], text: str, seconds: float) -> None:
    assert [word["word"] for word in words] == text.split()
    edges = [edge for word in words for edge in (word["start_ms"], word["end_ms"])]
    assert edges == sorted(edges)
    assert 0 <= edges[0] <= edges[-1] <= round(1000 * seconds) + 1
    assert edges[-1] > 0


TEXT = "Four two, seven. [pause:0.5s] Nine one; six!"
WORDS = "Four two, seven. Nine one; six!"


def test_a_whole_answer_has_its_word_times_in_a_header(client: TestClient) -> None:
    response = speak(client, TEXT)
    assert response.headers["X-Finish-Reason"]  # it is whole without being asked for
    words = json.loads(response.headers["X-Word-Timestamps"])
    assert_words(words, WORDS, len(response.content) / 48_000)
    assert words[3]["start_ms"] - words[2]["end_ms"] >= 499


def test_words_are_as_written_whatever_is_spoken_instead(client: TestClient) -> None:
    fields = {"lexicon": {"seven": "six one"}, "ssml": True}
    marked = WORDS.replace("two", '<sub alias="one nine">two</sub>')
    response = speak(client, f"<speak>{marked}</speak>", **fields)
    words = json.loads(response.headers["X-Word-Timestamps"])
    assert_words(words, WORDS, len(response.content) / 48_000)


def test_word_times_too_long_for_a_header_are_left_out_and_that_is_said(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheen.serve.answers.responses.MAX_WORDS_BYTES", 60)
    response = speak(client, "four two")
    assert "X-Word-Timestamps" not in response.headers
    assert "bytes" in response.headers["X-Word-Timestamps-Omitted"]


def test_events_have_word_times_chunk_by_chunk(client: TestClient) -> None:
    told = events(speak(client, TEXT, stream_format="sse").content)
    kinds = [event["type"] for event in told]
    assert kinds[0] == "speech.audio.delta"
    assert kinds[-1] == "speech.audio.done"
    timed = [event for event in told if event["type"] == "speech.audio.word_timestamps"]
    audio = b"".join(base64.b64decode(event["audio"]) for event in told if "audio" in event)
    assert len(timed) > 1
    words = [word for event in timed for word in event["word_timestamps"]]
    assert_words(words, WORDS, len(audio) / 48_000)


@pytest.mark.slow
@pytest.mark.parametrize("speed", [0.5, 2.0])
def test_times_are_those_of_the_speed_and_pauses_are_as_long_as_ever(
    client: TestClient, speed: float
) -> None:
    response = speak(client, TEXT, speed=speed)
    words = json.loads(response.headers["X-Word-Timestamps"])
    assert_words(words, WORDS, len(response.content) / 48_000)
    assert words[3]["start_ms"] - words[2]["end_ms"] >= 499


@pytest.mark.slow
def test_batches_and_websockets_have_word_times(client: TestClient) -> None:
    items = [{"input": TEXT}, {"input": "nine", "word_timestamps": False}, {"input": "---"}]
    results = client.post(BATCH, json={**REQUEST, "items": items}).json()["results"]
    assert_words(
        results[0]["word_timestamps"],
        WORDS,
        len(base64.b64decode(results[0]["audio_data"])) / 48_000,
    )
    assert "word_timestamps" not in results[1]
    assert results[2]["word_timestamps"] == []
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        for message in (
            {"type": "start", **REQUEST},
            {"type": "text", "text": "four two"},
            {"type": "end"},
        ):
            socket.send_json(message)
        timed, _ = messages(socket, "speech.audio.done")
    assert timed["type"] == "speech.audio.word_timestamps"
    assert_words(timed["word_timestamps"], "four two", 1.0)


def messages(socket: Any, last: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    while not (told and told[-1]["type"] == last):
        item = socket.receive()
        if item.get("text") is not None:
            told.append(json.loads(item["text"]))
    return told


def test_a_session_has_audio_and_times_in_messages(client: TestClient) -> None:
    config = {"type": "session.config", "stream_audio": True, **REQUEST}
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        for message in (config, {"type": "input.text", "text": WORDS}, {"type": "input.done"}):
            socket.send_json(message)
        start, *chunks, done, _ = messages(socket, "session.done")
    assert start["word_timestamps"] is True
    assert {chunk["type"] for chunk in chunks} == {"audio.chunk"}
    assert [chunk["chunk_id"] for chunk in chunks] == list(range(len(chunks)))
    audio = [base64.b64decode(chunk["audio_b64"]) for chunk in chunks]
    assert sum(map(len, audio)) == done["total_bytes"]
    assert audio[-1] == b""
    assert all(chunk["timestamps"] is None for chunk in chunks[:-1])
    assert chunks[1]["chunk_start_ms"] == chunks[0]["chunk_end_ms"] == round(len(audio[0]) / 48)
    assert_words(chunks[-1]["timestamps"], WORDS, done["total_bytes"] / 48_000)


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": True, "stream_format": "audio"}])
def test_a_stream_of_audio_has_no_place_for_word_times(
    client: TestClient, fields: dict[str, Any]
) -> None:
    response = client.post("/v1/audio/speech", json={**REQUEST, "input": "four", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "word_timestamps"


def test_a_session_of_files_has_no_place_for_word_times(client: TestClient) -> None:
    with client.websocket_connect("/v1/audio/speech/stream") as socket:
        socket.send_json({"type": "session.config", **REQUEST})
        assert socket.receive_json()["error"]["param"] == "word_timestamps"


def test_a_server_without_an_aligner_refuses_word_times(
    client: TestClient, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_aligner", None)
    response = client.post("/v1/audio/speech", json={**REQUEST, "input": "four"})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "word_timestamps_not_available"


@pytest.mark.slow
def test_audio_is_sent_where_its_words_cannot_be_aligned(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise ValueError("a clip of 31 s")

    monkeypatch.setattr("sheen.scoring.asr.whisper.FasterWhisper.align", fail)
    response = speak(client, "four")
    assert response.content
    assert response.headers["X-Word-Timestamps-Omitted"] == "alignment failed"
    told = events(speak(client, "four", stream_format="sse").content)
    assert told[-2] == {"type": "speech.audio.word_timestamps", "word_timestamps": None}


def test_an_aligner_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"args\.aligner: .*nothing"):
        Aligner(str(tmp_path / "nothing"), None)


# Whose words, and when


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Well-known — it's $5.50!", ["Well-known", "it's", "$5.50!"]),
        ("今日は Hello。", ["今", "日", "は", "Hello。"]),
        ("--- ***", []),
    ],
)
def test_timed_words_are_as_they_are_written(sentence: str, words: list[str]) -> None:
    assert written_words(sentence) == words


def test_a_chunk_has_the_words_of_its_sentences() -> None:
    spoken = SpokenWords(TextPipeline((), ("<laugh>",)).expected_transcript)
    spoken.add("It costs $5.", "it costs five dollars")
    spoken.add("Yes! <laugh>", "yes <laugh>")
    spoken.add("1, 2 and 3: we go now", "wˈʌn tˈu ænd θɹˈi wi ɡO nˈW")
    assert spoken.take("it costs five dollars") == ["It", "costs", "$5."]
    assert spoken.take("yes <laugh> wˈʌn tˈu ænd") == ["Yes!", "1,", "2", "and"]
    assert spoken.take("θɹˈi wi") == ["3:", "we"]
    assert spoken.rest() == ["go", "now"]


class Even(Aligner):
    """Knows no sound: every word takes as long."""

    def __init__(self) -> None:
        pass

    async def align(self, samples: Samples, sample_rate: int, words: Sequence[str]) -> Times:
        edges = np.linspace(0, len(samples) / sample_rate, len(words) + 1)
        return list(zip(edges.tolist(), edges[1:].tolist(), strict=False))


def test_times_are_those_at_which_words_are_heard() -> None:
    async def run() -> list[Any]:
        words = WordTimes(Even(), RATE, str)

        async def normalize(sentence: str) -> str:
            return sentence.lower()

        read = words.reading(normalize)
        texts: list[str] = []
        words.push(Span(np.zeros(500, np.float32), rate=None), 0.5, texts)
        texts.append(await read("A B"))
        for _ in range(2):  # 0.4 s of samples, twice as fast
            words.push(Span(np.zeros(200, np.float32)), 0.1, texts)
        words.push(Span(np.zeros(1000, np.float32), rate=None), 1.0, texts)
        texts.append(await read("C"))
        words.push(Span(np.zeros(100, np.float32), rate=0.5), 0.1, texts)
        return [chunk async for chunk in words.rest()]

    first, second = asyncio.run(run())
    assert [(word["word"], word["start_ms"], word["end_ms"]) for word in first + second] == [
        ("A", 500, 600),
        ("B", 600, 700),
        ("C", 1700, 1800),
    ]
