"""The served application, as its clients see it: Ray Serve, a checkpoint, HTTP.

What happens under load, and at the end: `tests/e2e/test_serve_load.py`.
"""

import base64
import http.client
import io
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import soundfile
from numpy.typing import NDArray
from websockets.sync.client import connect as connect_socket

from helpers.example import VOICE, VOICES
from helpers.in_process import events
from helpers.served import (
    BEARER,
    FRAME,
    HEADER,
    HTTP_TIMEOUT_S,
    MAX_SECONDS,
    asked,
    connect,
    create,
    decoded,
    get,
    opened,
    serving,
    spoken_here,
    state,
    wait_until_free,
)
from helpers.speaking import assert_close, silences
from sheen.audio.encoders import MEDIA_TYPES
from sheen.audio.io import wav_header
from sheen.engine.types import Sampling
from sheen.engine.voice import Voice
from sheen.serve.config import ServeArgs

# The first test here may have to make the checkpoint, and then starts Serve.
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def url(serve_port: int, checkpoint: Path) -> Iterator[str]:
    args = ServeArgs(
        model=str(checkpoint),
        auth="none",
        max_seconds=MAX_SECONDS,
        slots=8,
        max_queue=8,
    )
    with serving(serve_port, args, "shared", "/") as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with connect(url) as client:
        yield client


# What clients ask before they speak


def test_health_is_what_home_assistants_bridge_looks_for(url: str) -> None:
    assert get(f"{url}/health") == (200, "OK")


def test_the_server_is_ready_after_its_warm_up(url: str) -> None:
    assert get(f"{url}/ready") == (200, "OK")


def test_the_models_route_lists_one_model_and_refuses_others(client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("sheen", "model", "sheen")
    assert model.created > 0
    assert client.models.retrieve("sheen") == model
    with pytest.raises(openai.NotFoundError, match="'sheen'") as raised:
        client.models.retrieve("another")
    assert raised.value.code == "model_not_found"


def test_web_uis_get_the_models_and_voices_that_they_ask_for(url: str) -> None:
    assert json.loads(get(f"{url}/v1/audio/models")[1]) == {"models": [{"id": "sheen"}]}
    model = json.loads(get(f"{url}/v1/models/sheen")[1])
    assert [voice["name"] for voice in model["voices"]] == sorted(VOICES)


def test_the_page_and_the_documentation_are_served(url: str) -> None:
    status, body = get(f"{url}/")
    assert status == 200
    assert "<title>" in body
    assert get(f"{url}/docs")[0] == 200
    document = json.loads(get(f"{url}/openapi.json")[1])
    fields = document["components"]["schemas"]["SpeechRequest"]["properties"]
    assert {"seed", "temperature", "top_p", "top_k", "language", "stream"} <= set(fields)
    assert {VOICE, "cedar"} <= set(fields["voice"]["anyOf"][0]["enum"])
    # The framework's own 422 is never sent: it must not be promised.
    answers = document["paths"]["/v1/audio/speech"]["post"]["responses"]
    assert set(answers) == {"200", "400", "401", "408", "413", "415", "429", "500", "503"}


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", "/health", "/ready", "/v1/models", "/v1/models/sheen"]
)
def test_head_is_answered_wherever_get_is(url: str, path: str) -> None:
    # Through Serve's proxy too, which might wait for a body that never comes.
    status, headers, _ = asked("HEAD", f"{url}{path}")
    assert status == 200
    assert int(headers["Content-Length"]) == len(asked("GET", f"{url}{path}")[2])


def test_a_path_with_a_slash_too_many_is_redirected(url: str) -> None:
    status, headers, _ = asked("GET", f"{url}/v1/audio/voices/")
    assert (status, headers["Location"]) == (307, "../voices")


def test_voices_are_those_of_the_recordings(url: str) -> None:
    status, body = get(f"{url}/v1/audio/voices")
    names = sorted(VOICES)
    assert status == 200
    voices = [{"id": name, "name": name} for name in names]
    assert json.loads(body) == {"voices": voices, "uploaded_voices": []}


def test_an_unknown_path_gets_a_404_in_openais_shape(url: str) -> None:
    status, body = get(f"{url}/v1/audio/nothing")
    assert status == 404
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_a_pause_is_exact_over_http_and_instructions_are_ignored_by_name(
    client: openai.OpenAI,
) -> None:
    lengths = []
    for text in ("one [pause:1s] two", "one [pause:1.5s] two"):
        body, headers = create(client, text, response_format="pcm", seed=1, instructions="loud")
        samples = np.frombuffer(body, "<i2")
        lengths.append(len(samples))
        assert headers["x-sheen-ignored"] == "instructions"
        assert max(silences(samples)) >= 24_000
    assert lengths[1] - lengths[0] == 12_000


# Speech: the same to one step of 16 bits, and not always to the byte. What a window of audio holds
# follows from how fast tokens come, and convolutions of other lengths add in another order.


def create_pcm(client: openai.OpenAI, **request: Any) -> NDArray[np.int16]:
    body, _ = create(client, **request, response_format="pcm")
    return np.frombuffer(body, "<i2")


def assert_other(samples: NDArray[np.int16], than: NDArray[np.int16]) -> None:
    """Other speech, and not the same with its last bits rounded otherwise."""
    assert len(samples) != len(than) or np.abs(samples.astype(int) - than).max() > 100


def test_the_wav_is_what_the_engine_speaks(client: openai.OpenAI, voice: Voice) -> None:
    body, headers = create(client, seed=7, temperature=0.9, top_p=0.8, top_k=50)
    assert headers["content-type"] == "audio/wav"
    assert headers["x-sample-rate"] == "24000"
    samples, rate = soundfile.read(io.BytesIO(body), dtype="int16")
    assert rate == 24_000
    assert_close(samples, spoken_here(voice, "four two", VOICE, Sampling(0.9, 50, 0.8, 7)))


def test_a_plain_request_gets_an_mp3_with_the_default_sampling(
    client: openai.OpenAI, voice: Voice
) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="sheen", input="nine one", voice="am_onyx", extra_body={"seed": 3}
    ) as response:
        body = response.read()
        assert response.headers["content-type"] == "audio/mpeg"
        assert response.headers["x-request-id"]
    expected = spoken_here(voice, "nine one", "am_onyx", Sampling(seed=3)) / 32767
    samples = decoded(body)
    assert abs(len(samples) - len(expected)) <= FRAME
    # The same speech: it correlates, at the delay that the format has.
    delays = range(0, 2 * FRAME, 1)
    length = len(expected) - 2 * FRAME
    best = max(
        np.corrcoef(samples[d : d + length], expected[:length])[0, 1]
        for d in delays
        if d + length <= len(samples)
    )
    assert best > 0.9


def test_pcm_is_the_wav_without_its_header(client: openai.OpenAI) -> None:
    wav, _ = create(client, seed=7)
    pcm, headers = create(client, response_format="pcm", seed=7)
    assert headers["content-type"] == "audio/pcm"
    assert headers["x-sample-rate"] == "24000"
    assert_close(np.frombuffer(pcm, "<i2"), np.frombuffer(wav[HEADER:], "<i2"))


def test_the_same_seed_gives_the_same_bytes(client: openai.OpenAI) -> None:
    """While nobody else is spoken to, in one chunk and in several."""
    for text in ("four two seven one nine", "four two. seven one nine six. three"):
        bodies = {create_pcm(client, text=text, seed=7).tobytes() for _ in range(2)}
        assert len(bodies) == 1


def test_another_seed_text_or_voice_gives_another_audio(client: openai.OpenAI) -> None:
    first = create_pcm(client, seed=7)
    assert_other(create_pcm(client, seed=8), first)
    assert_other(create_pcm(client, text="nine nine", seed=7), first)
    assert_other(create_pcm(client, voice="am_onyx", seed=7), first)


@pytest.mark.parametrize("seed", [None, -1])
def test_without_a_seed_no_two_renditions_are_alike(
    client: openai.OpenAI, seed: int | None
) -> None:
    assert_other(create_pcm(client, seed=seed), create_pcm(client, seed=seed))


def test_the_body_is_chunked(url: str) -> None:
    with opened(url, input="four two", seed=7, response_format="wav") as response:
        assert response.status == 200
        assert response.getheader("Transfer-Encoding") == "chunked"
        assert response.getheader("Content-Length") is None
        # read1 gives at most one chunk: the header comes with the first samples, the rest later.
        first = response.read1()
        assert first[:HEADER] == wav_header(24_000)
        assert len(first) > HEADER
        assert response.read()


def test_requests_together_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    texts = ["one", "two two", "three four five", "six", "seven one", "eight", "nine nine", "zero"]
    voices = VOICES * 2
    requests = list(zip(texts, voices, range(8), strict=True))

    def ask(request: tuple[str, str, int]) -> NDArray[np.int16]:
        text, voice, seed = request
        return create_pcm(client, text=text, voice=voice, seed=seed)

    alone = [ask(request) for request in requests]
    assert len({samples.tobytes() for samples in alone}) == 8
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, requests))
    for samples, expected in zip(together, alone, strict=True):
        assert_close(samples, expected)


# Every format, as audio and as events, read to its end or left half way


@pytest.fixture(scope="module")
def six(voice: Voice) -> NDArray[np.int16]:
    return spoken_here(voice, "six", VOICE, Sampling(seed=7))


@pytest.mark.parametrize(
    ("audio_format", "stream_format"),
    [
        *product(MEDIA_TYPES, ["audio"]),
        *product(["pcm", "mp3"], ["sse"]),
        # Events carry the bytes of a stream.
        *(
            pytest.param(name, "sse", marks=pytest.mark.soak)
            for name in MEDIA_TYPES
            if name not in ("pcm", "mp3")
        ),
    ],
)
def test_every_format_is_answered_whole_and_as_events(
    url: str, six: NDArray[np.int16], audio_format: str, stream_format: str
) -> None:
    request = {
        "input": "six",
        "seed": 7,
        "response_format": audio_format,
        "stream_format": stream_format,
    }
    with opened(url, **request) as response:
        assert response.status == 200
        media = "text/event-stream" if stream_format == "sse" else MEDIA_TYPES[audio_format]
        assert (response.getheader("Content-Type") or "").split(";")[0] == media
        assert response.getheader("x-sample-rate") == "24000"
        body = response.read()
    if stream_format == "sse":
        *deltas, done = events(body)
        assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
        assert len(deltas) > 1
        assert done["type"] == "speech.audio.done"
        usage = done["usage"]
        assert usage["output_tokens"] == 7 * len(six) // FRAME
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        body = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    if audio_format == "pcm":
        assert_close(np.frombuffer(body, "<i2"), six)
    else:
        assert abs(len(decoded(body)) - len(six)) <= FRAME


@pytest.mark.parametrize("speed", [0.25, 0.8, 4.0])
def test_speed_changes_the_duration(client: openai.OpenAI, speed: float) -> None:
    plain, _ = create(client, response_format="pcm", seed=7)
    other, _ = create(client, response_format="pcm", seed=7, speed=speed)
    assert abs(len(other) - len(plain) / speed) <= 2 * FRAME


def test_a_body_that_is_not_streamed_has_its_length(url: str) -> None:
    request = {"input": "four two", "seed": 7, "response_format": "wav"}
    with opened(url, **request) as response:
        streamed = response.read()
    with opened(url, **request, stream=False) as response:
        body = response.read()
        assert response.getheader("Content-Length") == str(len(body))
    assert_close(np.frombuffer(body[HEADER:], "<i2"), np.frombuffer(streamed[HEADER:], "<i2"))
    assert body[:HEADER] == wav_header(24_000, (len(body) - HEADER) // 2)


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/1.0\r\nX-Request-ID: \xfc",
        b"HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A",
    ],
    ids=["HTTP/1.0, and an id that is not UTF-8", "an offer of HTTP/2, as Java's"],
)
def test_clients_that_rays_proxy_alone_would_not_understand_are_answered(
    client: openai.OpenAI, url: str, line: bytes
) -> None:
    place = urlsplit(url)
    body = json.dumps(
        {"input": "four two", "voice": VOICE, "response_format": "pcm", "seed": 4}
    ).encode()
    with socket.create_connection((place.hostname, place.port), HTTP_TIMEOUT_S) as connection:
        connection.sendall(
            b"POST /v1/audio/speech %s\r\nHost: here\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (line, len(body), body)
        )
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            chunked = response.getheader("transfer-encoding") == "chunked"
            assert (response.status, chunked) == (200, line.startswith(b"HTTP/1.1"))
            assert response.read() == create(client, response_format="pcm", seed=4)[0]


def test_a_batch_has_a_file_for_each_item(client: openai.OpenAI, url: str) -> None:
    items = [{"input": "four two", "seed": 7, "voice": VOICE}, {"input": ""}]
    answer: Any = client.post("/audio/speech/batch", body={"items": items}, cast_to=object)
    with opened(url, **items[0], stream=False, response_format="wav") as response:
        alone = response.read()
        assert response.getheader("X-Finish-Reason") in ("stop", "length")
    spoken, failed = answer["results"]
    body = base64.b64decode(spoken["audio_data"])
    assert_close(np.frombuffer(body[HEADER:], "<i2"), np.frombuffer(alone[HEADER:], "<i2"))
    assert failed["error"].startswith("input: ")


# Many at once, long texts, texts in chunks


def test_each_of_64_requests_is_answered_whole_or_told_to_come_back(url: str, voice: Voice) -> None:
    text = "four two. seven one."
    expected = {seed: spoken_here(voice, text, VOICE, Sampling(seed=seed)) for seed in range(2)}

    def ask(number: int) -> int:
        seed = number % 2
        request = {"input": text, "response_format": "pcm", "seed": seed}
        with opened(url, **request) as response:
            body = response.read()
            if response.status == 200:
                assert_close(np.frombuffer(body, "<i2"), expected[seed])
            else:
                assert int(response.getheader("Retry-After") or 0) >= 1
            return response.status

    with ThreadPoolExecutor(64) as pool:
        statuses = list(pool.map(ask, range(64)))
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 16  # as many as there are places
    wait_until_free("shared")


def test_a_long_text_is_one_stream_and_speaks_before_it_is_all_made(
    client: openai.OpenAI, url: str, voice: Voice
) -> None:
    text = " ".join(["four two."] * 8)
    expected = spoken_here(voice, text, "am_onyx", Sampling(seed=5))
    with opened(url, input=text, voice="am_onyx", response_format="pcm", seed=5) as response:
        first = response.read1()
        unfinished = state("shared")["inside"]
        body = first + response.read()
    assert unfinished == 1
    assert len(first) < len(body) / 6
    assert_close(np.frombuffer(body, "<i2"), expected)


def talk(url: str, *messages: dict[str, Any]) -> list[bytes | dict[str, Any]]:
    """What comes for these messages until speech is done, cancelled or refused."""
    received: list[bytes | dict[str, Any]] = []
    address = f"{url.replace('http', 'ws', 1)}/v1/audio/speech/stream"
    with connect_socket(address, additional_headers=BEARER, open_timeout=HTTP_TIMEOUT_S) as socket:
        for message in messages:
            socket.send(json.dumps(message))
        while not (received and isinstance(received[-1], dict)):
            item = socket.recv(HTTP_TIMEOUT_S)
            received.append(json.loads(item) if isinstance(item, str) else item)
    return received


START = {"type": "start", "model": "sheen", "voice": VOICE, "response_format": "pcm", "seed": 7}


def test_text_in_chunks_gives_the_speech_of_the_whole(url: str, voice: Voice) -> None:
    chunks = ["fo", "ur t", "wo. sev", "en", " one", ". nine"]
    texts = [{"type": "text", "text": chunk} for chunk in chunks]
    *audio, done = talk(url, START, *texts, {"type": "end"})
    expected = spoken_here(voice, "four two. seven one. nine", VOICE, Sampling(seed=7))
    assert isinstance(done, dict)
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] > 0
    samples = np.frombuffer(b"".join(item for item in audio if isinstance(item, bytes)), "<i2")
    # Nobody knew that the last sentence is the last: it ends in a pause.
    assert len(samples) >= len(expected)
    assert_close(samples[: FRAME * 4], expected[: FRAME * 4])
    wait_until_free("shared")


def test_a_sentence_is_spoken_before_its_text_has_ended(url: str) -> None:
    address = f"{url.replace('http', 'ws', 1)}/v1/audio/speech/stream"
    with connect_socket(address, open_timeout=HTTP_TIMEOUT_S) as socket:
        for message in (START, {"type": "text", "text": "four two. and then "}):
            socket.send(json.dumps(message))
        assert isinstance(socket.recv(HTTP_TIMEOUT_S), bytes)  # nothing said that it is all
        socket.send(json.dumps({"type": "cancel"}))
        while isinstance(item := socket.recv(HTTP_TIMEOUT_S), bytes):
            pass
        assert json.loads(item) == {"type": "speech.audio.cancelled"}
        assert state("shared")["inside"] == 0
        # The line is still open for what is said instead.
        for message in ({"type": "text", "text": "nine."}, {"type": "end"}):
            socket.send(json.dumps(message))
        assert isinstance(socket.recv(HTTP_TIMEOUT_S), bytes)
    wait_until_free("shared")


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"type": "text", "text": "one"}], "type"),
        ([{"type": "sing"}], None),
        ([START | {"speed": 9}], "speed"),
        ([START | {"voice": "nobody"}, {"type": "text", "text": "one"}], "voice"),
        ([START, {"type": "end"}], "type"),
        ([START, {"type": "text", "text": "one two"}, {"type": "text"}], "text"),
    ],
)
def test_a_websocket_names_the_field_that_it_cannot_follow(
    url: str, messages: list[dict[str, Any]], param: str | None
) -> None:
    received = talk(url, *messages)
    answer = received[-1]
    assert isinstance(answer, dict)
    assert answer["type"] == "error"
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["param"] == param


def test_the_names_of_openais_voices_speak(client: openai.OpenAI) -> None:
    alloy, _ = create(client, voice="alloy", response_format="pcm", seed=7)
    af_aoede, _ = create(client, voice="af_aoede", response_format="pcm", seed=7)
    assert_close(np.frombuffer(alloy, "<i2"), np.frombuffer(af_aoede, "<i2"))
    assert create(client, voice="cedar", response_format="pcm", seed=7)[0]


# Texts without a word


@pytest.mark.parametrize(
    ("text", "response_format", "door"),
    [
        ("---", "mp3", "stream"),
        ("😀", "opus", "whole"),
        ("```", "aac", "events"),
        ("+", "flac", "whole"),
        ("|---|---|\n|---|---|", "wav", "stream"),
        ("🏻", "pcm", "whole"),
        (" \n", "pcm", "events"),
        ("...", "wav", "socket"),
        ("% ~ **", "opus", "socket"),
    ],
)
def test_a_text_without_a_word_is_a_moment_of_silence(
    url: str, text: str, response_format: str, door: str
) -> None:
    request = {"response_format": response_format, "voice": VOICE}
    if door == "socket":
        said = {"type": "text", "text": text}
        *frames, done = talk(url, START | request, said, {"type": "end"})
        body = b"".join(frame for frame in frames if isinstance(frame, bytes))
    else:
        way = {"stream": door == "stream", "stream_format": "sse" if door == "events" else "audio"}
        with opened(url, input=text, **request, **way) as response:
            assert response.status == 200
            body = response.read()
        if door == "events":
            *deltas, done = events(body)
            body = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    if door in ("events", "socket"):
        assert isinstance(done, dict)
        assert (done["type"], done["usage"]["total_tokens"]) == ("speech.audio.done", 0)
    samples = np.frombuffer(body, "<i2") if response_format == "pcm" else decoded(body)
    # An encoder fills its last frame, and puts one before the sound.
    assert 0.2 * 24_000 <= len(samples) <= (0.2 + 0.1) * 24_000
    assert np.abs(samples).max() < 1e-3


def test_what_has_no_word_is_skipped_inside_a_text(client: openai.OpenAI) -> None:
    plain = create_pcm(client, text="four two.\nseven one", seed=7)
    marked = create_pcm(client, text="***\nfour two.\n---\n😀\n```\nseven one\n| + |", seed=7)
    np.testing.assert_array_equal(marked, plain)


# Refusals


def test_an_unknown_voice_lists_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=", ".join(sorted(VOICES))) as raised:
        create(client, voice="nobody")
    assert raised.value.param == "voice"
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("text", ["", "a" * 5000])
def test_a_text_that_cannot_be_spoken_is_a_400_for_its_input(
    client: openai.OpenAI, text: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, text=text)
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert raised.value.param == "input"


def test_a_format_that_is_not_made_is_refused_and_not_replaced(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"wav.*pcm"):
        create(client, response_format="ogg")
