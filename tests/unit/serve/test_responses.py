"""Responses: samples to bytes, in another thread or not, and events; and answers that fail, before
their audio and in the middle. The real backend, no Ray Serve."""

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient

from helpers.example import VOICE
from helpers.speaking import WAIT_S, silences
from sheen.audio.io import decode_audio, to_pcm16
from sheen.audio.samples import Samples
from sheen.engine.types import Span
from sheen.serve import request_log
from sheen.serve.access.admission import Admission
from sheen.serve.answers.responses import answer, delta_event, streamed
from sheen.serve.backend import Backend
from sheen.serve.capabilities import Capabilities
from sheen.serve.config import ClientLimits, ServeArgs
from sheen.serve.errors import APIError
from sheen.serve.rendering import Renderer
from sheen.serve.request_log import RequestRecord, close_record
from sheen.serve.schema.requests import SpeechRequest
from sheen.serve.websocket.conversation import converse

RATE = 24_000


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def tone(seconds: float) -> Samples:
    return (0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.float32)


async def render(renderer: Renderer, chunks: list[Samples]) -> bytes:
    parts = [await renderer.push(Span(chunk)) for chunk in chunks]
    return b"".join([*parts, await renderer.finish()])


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("audio_format", ["pcm", "mp3", "opus"])
def test_streams_side_by_side_do_not_mix(
    pool: ThreadPoolExecutor, audio_format: str, speed: float
) -> None:
    samples = [tone(0.5 + 0.1 * number) * (1 - 0.2 * number) for number in range(4)]

    async def alone() -> list[bytes]:
        renderers = [Renderer(audio_format, speed, RATE, pool) for _ in samples]
        return [
            await render(renderer, np.array_split(wave, 7))
            for renderer, wave in zip(renderers, samples, strict=True)
        ]

    async def together() -> list[bytes]:
        renderers = [Renderer(audio_format, speed, RATE, pool) for _ in samples]
        return await asyncio.gather(
            *(
                render(renderer, np.array_split(wave, 7))
                for renderer, wave in zip(renderers, samples, strict=True)
            )
        )

    expected, bodies = asyncio.run(alone()), asyncio.run(together())
    if audio_format == "opus":  # every Ogg stream has a random serial number
        pairs = zip(bodies, expected, strict=True)
        for (one, two), wave in zip(pairs, samples, strict=True):
            length = len(decode_audio(one, RATE))
            assert length == len(decode_audio(two, RATE))
            assert abs(length - len(wave) / speed) <= 2048
    else:
        assert bodies == expected
    if (audio_format, speed) == ("pcm", 1.0):
        assert bodies == [to_pcm16(wave).tobytes() for wave in samples]


def test_a_client_that_leaves_while_a_thread_computes_breaks_nothing(
    pool: ThreadPoolExecutor,
) -> None:
    async def run() -> None:
        for _ in range(50):
            renderer = Renderer("mp3", 1.5, RATE, pool)
            await renderer.push(Span(tone(0.1)))
            pushing = asyncio.create_task(renderer.push(Span(tone(1.0))))
            await asyncio.sleep(0)
            pushing.cancel()
            renderer.close()
            assert await renderer.push(Span(tone(0.1))) == b""

    asyncio.run(run())


def test_an_event_is_one_line_of_json_that_holds_the_bytes() -> None:
    data = bytes(range(256))
    event = delta_event(data)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    read = json.loads(event.removeprefix(b"data: "))
    assert read["type"] == "speech.audio.delta"
    assert base64.b64decode(read["audio"]) == data


@pytest.fixture(scope="module")
def backend(checkpoint: Path) -> Iterator[Backend]:
    args = ServeArgs(auth="none", max_seconds=0.6, slots=1, max_queue=1)
    backend = Backend(args, str(checkpoint), codec_process=False)  # so that a test can break it
    yield backend
    backend.close()


def ask(
    backend: Backend, timeout_s: float = WAIT_S, **fields: Any
) -> tuple[list[bytes], RequestRecord, Any]:
    """The chunks of an answer, its record when it is over, and what it failed with."""
    record, chunks = RequestRecord(path="/v1/audio/speech", request_id="id"), list[bytes]()
    fields = {
        "model": "m",
        "input": "one two six",
        "voice": VOICE,
        "response_format": "pcm",
    } | fields

    async def run() -> Any:
        body = SpeechRequest.model_validate(fields)
        try:
            utterance = backend.begin(body, record)
            await utterance.feed(body.input)
            utterance.close()
            events = body.stream_format == "sse"
            response = await streamed(utterance, record, timeout_s, events)
            async for chunk in response.body_iterator:
                assert isinstance(chunk, bytes)
                chunks.append(chunk)
        except APIError as error:
            return error
        finally:
            close_record(record)

    return chunks, record, asyncio.run(run())


def break_after(backend: Backend, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the codec decode so many batches of windows, and then no more."""
    decode, left = backend.voice.codec.decode, iter(range(calls))

    def decode_or_fail(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise RuntimeError("the codec broke")
        return decode(*arguments, **named)

    monkeypatch.setattr(backend.voice.codec, "decode", decode_or_fail)


def test_a_stream_that_breaks_never_ends_as_if_it_were_whole(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(backend, monkeypatch, 1)
    chunks, record, error = ask(backend)
    assert chunks
    assert isinstance(error, APIError)
    assert (error.status, record.finish_reason) == (500, "error")
    assert backend.admission.inside == 0


def test_among_events_a_break_is_told_and_then_cut_off(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(backend, monkeypatch, 1)
    chunks, _, error = ask(backend, stream_format="sse")
    kinds = [json.loads(chunk.removeprefix(b"data: "))["type"] for chunk in chunks]
    assert kinds[0] == "speech.audio.delta"
    assert kinds[-1] == "speech.audio.error"
    assert "speech.audio.done" not in kinds
    assert isinstance(error, APIError)


def test_a_failure_before_the_audio_has_a_status(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_after(backend, monkeypatch, 0)
    chunks, record, error = ask(backend)
    assert not chunks
    assert isinstance(error, APIError)
    assert (error.status, record.finish_reason) == (500, "error")


def test_audio_that_does_not_begin_in_time_is_a_503_and_leaves_the_slot(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, release = backend.voice.codec.decode, threading.Event()

    def wait(*arguments: Any, **named: Any) -> Any:
        assert release.wait(WAIT_S)
        return decode(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(backend.voice.codec, "decode", wait)
        _, record, error = ask(backend, timeout_s=0.05)
        release.set()
    assert isinstance(error, APIError)
    assert (error.status, error.code, record.finish_reason) == (503, "timeout", "error")
    assert error.retry_after_s
    chunks, record, error = ask(backend)
    assert (bool(chunks), error) == (True, None)
    assert record.finish_reason in ("stop", "length")


def test_a_place_that_is_not_there_is_a_429_and_is_not_counted_as_speech(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of its own: places may still be kept for those whom earlier tests had refused.
    monkeypatch.setattr(backend, "admission", Admission(2, 1))
    with backend.admission.enter(), backend.admission.enter():
        _, record, error = ask(backend)
    assert isinstance(error, APIError)
    assert (error.status, record.finish_reason) == (429, "")


def test_the_log_has_no_voice_in_the_words_of_a_client(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, record, error = ask(backend, voice="my neighbour Ann", input="---")
    assert (error.code, record.voice) == ("voice_not_found", "")
    # As with a model that takes descriptions of voices.
    monkeypatch.setattr(backend.capabilities, "speaker", lambda name: VOICE)
    _, record, error = ask(backend, voice="my neighbour Ann", input="---")
    assert (error, record.fields()["voice"]) == (None, "described")


def test_a_lexicon_says_what_is_spoken(backend: Backend) -> None:
    expected = ask(backend, input="two six", seed=1)[0]
    spoken, _, error = ask(
        backend, input="TWO sechs", seed=1, lexicon={"two": "two", "sechs": "six"}
    )
    assert (error, b"".join(spoken)) == (None, b"".join(expected))
    _, _, error = ask(backend, lexicon={"six": "/sɪks/"})
    assert isinstance(error, APIError)
    assert (error.status, error.param, error.code) == (400, "lexicon", "invalid_lexicon")
    assert "'six'" in str(error)


@pytest.mark.slow
def test_a_document_is_spoken_or_refused_by_what_is_wrong(backend: Backend) -> None:
    document = f'<speak>one <break time="1s"/><voice name="{VOICE}">two</voice></speak>'
    spoken, _, error = ask(backend, input=document, ssml=True, seed=1)
    expected = ask(backend, input="one [pause:1s] two", seed=1)[0]
    assert (error, b"".join(spoken)) == (None, b"".join(expected))
    for wrong in ("two", "<speak>two", '<speak><break time="3600s"/></speak>'):
        _, _, error = ask(backend, input=wrong, ssml=True)
        assert isinstance(error, APIError)
        assert (error.status, error.param, error.code) == (400, "input", "invalid_mark")


def test_a_tag_that_the_model_does_not_know_is_text_or_refused(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(backend, input="one <laugh>")[2] is None
    args = backend._args.model_copy(update={"unknown_tags": "refuse"})
    monkeypatch.setattr(backend, "capabilities", Capabilities(backend.voice, args))
    _, _, error = ask(backend, input="one <laugh>")
    assert isinstance(error, APIError)
    assert (error.status, error.code) == (400, "invalid_mark")
    assert "<laugh>" in str(error)
    _, _, error = ask(backend, input="<speak>one <laugh/></speak>", ssml=True)
    assert isinstance(error, APIError)
    assert (error.status, error.code) == (400, "invalid_mark")


@pytest.mark.slow
@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_pause_is_exact_at_any_speed(backend: Backend, speed: float) -> None:
    chunks, _, error = ask(backend, input="one [pause:1.5s] two", speed=speed, seed=1)
    assert error is None
    samples = np.frombuffer(b"".join(chunks), np.int16)
    assert 36_000 <= max(silences(samples)) <= 36_000 + 20  # 16 bits make zeros of a fade's end
    again = ask(backend, input="one [pause:2s] two", speed=speed, seed=1)[0]
    assert len(b"".join(again)) // 2 == len(samples) + 12_000


def test_a_mark_that_cannot_be_followed_is_a_400_that_quotes_it(backend: Backend) -> None:
    for mark in ("[pause:3600s]", "[pause:1,5s]", "[pause:-1s]", "[pause:1h]"):
        chunks, _, error = ask(backend, input=f"one {mark} two")
        assert not chunks
        assert isinstance(error, APIError)
        assert (error.status, error.param, error.code) == (400, "input", "invalid_mark")
        assert mark in str(error)
        assert backend.admission.inside == 0


def test_instructions_are_ignored_aloud_or_refused(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RequestRecord()
    body = {"model": "m", "input": "one", "voice": VOICE, "response_format": "pcm"}

    async def headers(**fields: Any) -> Any:
        request = SpeechRequest.model_validate(body | fields)
        try:
            return (await answer(backend, request, record, WAIT_S)).headers
        finally:
            close_record(record)

    assert "x-sheen-ignored" not in asyncio.run(headers())
    assert asyncio.run(headers(instructions="cheerful"))["x-sheen-ignored"] == "instructions"
    assert record.fields()["ignored"] == ["instructions"]
    others = {
        "reference_id": "54a5170264694bfc8e9ad98df7bd89c3", "speaker_embedding": [0.5],
        "x_vector_only_mode": True, "max_new_tokens": 2048, "task_type": "Base",
    }  # fmt: skip
    assert asyncio.run(headers(**others))["x-sheen-ignored"] == ", ".join(others)
    design = asyncio.run(headers(task_type="VoiceDesign", instructions="warm"))
    assert design["x-sheen-ignored"] == "instructions, task_type"
    idle = {"task_type": "CustomVoice", "x_vector_only_mode": False, "non_streaming_mode": True}
    assert "x-sheen-ignored" not in asyncio.run(headers(**idle, user="me"))
    args = backend._args.model_copy(update={"instructions": "refuse"})
    monkeypatch.setattr(backend, "capabilities", Capabilities(backend.voice, args))
    _, _, error = ask(backend, instructions="cheerful")
    assert isinstance(error, APIError)
    assert (error.status, error.param) == (400, "instructions")


@pytest.mark.slow
def test_instructions_reach_a_model_that_was_trained_with_them(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the prompt of every chunk, and nothing is said to be ignored."""
    fields = {"model": "m", "voice": VOICE, "seed": 1, "response_format": "pcm", "stream": False}

    async def input_tokens(**more: str | None) -> int:
        begun = RequestRecord()
        request = SpeechRequest.model_validate(fields | {"input": "One. [pause:1s] Two."} | more)
        try:
            response = await answer(backend, request, begun, WAIT_S)
        finally:
            close_record(begun)
        assert "x-sheen-ignored" not in response.headers
        assert begun.chunks == 2
        return begun.input_tokens

    info = backend.voice.info.model_copy(update={"instructions": True})
    monkeypatch.setattr(backend, "voice", replace(backend.voice, info=info))
    args = backend._args.model_copy(update={"instructions": "refuse"})
    monkeypatch.setattr(backend, "capabilities", Capabilities(backend.voice, args))
    voice = backend.voice
    for how in (None, "so that all can hear it"):
        chunks = [
            voice.template.ids(voice.model_input(text), VOICE, how) for text in ("One.", "Two.")
        ]
        assert asyncio.run(input_tokens(instructions=how)) == sum(map(len, chunks))


# On a WebSocket

START = {"type": "start", "model": "m", "voice": VOICE, "response_format": "pcm"}
END = {"type": "end"}


@pytest.fixture
def socket(backend: Backend) -> Iterator[Any]:
    app = FastAPI()

    @app.websocket("/")
    async def talk(socket: WebSocket) -> None:
        await converse(socket, backend, ClientLimits())

    with TestClient(app) as client, client.websocket_connect("/") as socket:
        socket.send_json(START)
        yield socket


def say(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def emptied(backend: Backend) -> bool:
    """Whether the last request gives its place back: it does so after its client's last message."""
    deadline = time.monotonic() + WAIT_S
    while backend.admission.inside and time.monotonic() < deadline:
        time.sleep(0.01)
    return not backend.admission.inside


def heard(socket: Any) -> tuple[int, dict[str, Any]]:
    """Bytes of audio before the next message, and that message."""
    size = 0
    while "bytes" in (message := socket.receive()):
        size += len(message["bytes"])
    return size, json.loads(message["text"])


def test_after_a_refusal_the_rest_of_that_text_is_not_spoken(backend: Backend, socket: Any) -> None:
    backend.admission.draining = True
    socket.send_json(say("do not "))
    assert heard(socket)[1]["error"]["code"] == "draining"
    backend.admission.draining = False
    for message in (say("open the door. "), say("go. "), END):
        socket.send_json(message)
    # The next thing that is heard is the next text.
    for message in (say("one. "), END):
        socket.send_json(message)
    size, done = heard(socket)
    assert done["type"] == "speech.audio.done"
    assert 0 < size <= 2 * 24_000 * 0.6


def test_speech_that_fails_while_its_text_comes_is_not_taken_up_again(
    backend: Backend, socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_after(backend, patch, 1)
        socket.send_json(say("one two six. one two "))
        size, failure = heard(socket)
    assert size > 0
    assert (failure["type"], failure["error"]["type"]) == ("error", "server_error")
    for message in (say("six. "), END, say("one. "), END):
        socket.send_json(message)
    assert heard(socket)[1]["type"] == "speech.audio.done"
    assert emptied(backend)


def test_a_message_that_is_none_ends_the_utterance_it_is_in(backend: Backend, socket: Any) -> None:
    socket.send_json(say("one "))
    socket.send_json({"type": "text", "text": "x" * 5000})
    assert heard(socket)[1]["error"]["param"] == "text"
    assert emptied(backend)
    for message in (say("two. "), END, say("six. "), END):
        socket.send_json(message)
    assert heard(socket)[1]["type"] == "speech.audio.done"


def test_texts_without_a_character_do_not_keep_an_utterance_open(
    socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sheen.serve.websocket.conversation.IDLE_S", 0.2)
    socket.send_json(say("one "))
    time.sleep(0.3)
    for _ in range(2):  # it is noticed before the next message is received
        socket.send_json(say(""))
    socket.send_json({"type": "sing"})
    assert heard(socket)[1]["error"]["code"] == "idle"


def test_a_document_is_refused_on_a_socket(socket: Any) -> None:
    socket.send_json(START | {"ssml": True})
    assert heard(socket)[1]["error"]["param"] == "ssml"


@pytest.mark.slow
def test_a_pause_that_comes_in_pieces_is_a_pause_and_a_wrong_one_ends_its_text(
    backend: Backend, socket: Any
) -> None:
    socket.send_json(START | {"seed": 1, "instructions": "cheerful"})
    for text in ("one [pau", "se:", "1.5s", "]two"):
        socket.send_json(say(text))
    socket.send_json(END)
    size, done = heard(socket)
    assert done["ignored"] == ["instructions"]
    whole = ask(backend, input="one [pause:1.5s] two", seed=1)[0]
    assert size == len(b"".join(whole))
    for message in (START | {"lexicon": {"a": "one " * 49}}, say("a " * 50), END):
        socket.send_json(message)
    assert "adds more than" in heard(socket)[1]["error"]["message"]
    socket.send_json(say("[pause:3600s]"))
    error = heard(socket)[1]["error"]
    assert (error["param"], error["code"]) == ("text", "invalid_mark")
    assert emptied(backend)


def test_what_a_socket_is_refused_is_logged_with_code_and_field(
    backend: Backend, socket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[RequestRecord] = []
    monkeypatch.setattr(request_log, "_listeners", [])
    request_log.listen(records.append)
    for message in (
        START | {"speed": 9},
        START | {"voice": "nobody"},
        say("one"),
        {"type": "sing"},
    ):
        socket.send_json(message)
    for _ in range(3):
        heard(socket)
    logged = [(record.path, record.code, record.param) for record in records]
    assert logged == [
        ("/", "less_than_equal", "speed"),
        ("/", "voice_not_found", "voice"),
        ("/", "union_tag_invalid", None),
    ]


def test_no_more_lines_than_places(backend: Backend, socket: Any) -> None:
    backend.open_sockets = backend.max_sockets
    try:
        app = FastAPI()

        @app.websocket("/")
        async def talk(socket: WebSocket) -> None:
            await converse(socket, backend, ClientLimits())

        with TestClient(app) as client, client.websocket_connect("/") as another:
            assert heard(another)[1]["error"]["type"] == "rate_limit_error"
            assert another.receive()["code"] == 1013
    finally:
        backend.open_sockets = 1


@pytest.mark.slow
def test_an_engine_that_has_stopped_lets_nobody_in_and_says_when_to_come_back(
    checkpoint: Path,
) -> None:
    args = ServeArgs(auth="none", max_seconds=0.6, slots=1, max_queue=1)
    stopped = Backend(args, str(checkpoint), codec_process=False)
    stopped.close()
    chunks, _, error = ask(stopped)
    assert (chunks, error.status, stopped.admission.inside) == ([], 503, 0)
    assert error.retry_after_s > 1
