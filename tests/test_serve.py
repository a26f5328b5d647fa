"""The served application, as its clients see it: Ray Serve, a trained checkpoint, HTTP."""

import http.client
import io
import json
import shutil
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import openai
import pytest
import soundfile
from numpy.typing import NDArray
from ray import serve

from sheen.core.audio import to_pcm16, wav_header
from sheen.core.ending import Finished
from sheen.core.engine import Engine
from sheen.core.sampling import Sampling
from sheen.core.synthesis import stream
from sheen.core.voice import Voice
from sheen.serve.app import build
from sheen.serve.config import ServeArgs
from speaking import assert_close

# The first test here may have to make the checkpoint, and then starts Serve.
pytestmark = pytest.mark.timeout(600)

HTTP_TIMEOUT_S = 120
MAX_SECONDS = 1.5
HEADER = len(wav_header(24_000))


@pytest.fixture(scope="module")
def served(ray_cluster: None, trained: Path) -> Iterator[str]:
    """Serve with two applications, started together because that takes half the time."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    model = str(trained / "checkpoint")
    shared = ServeArgs(
        model=model,
        default_max_seconds=MAX_SECONDS,
        slots=8,
        max_queue=8,
        torch_threads=1,  # as here: another number could round otherwise
    )
    small = ServeArgs(
        model=model,
        default_max_seconds=60,
        slots=1,
        max_queue=1,
        torch_threads=1,
    )
    serve.run_many(
        [
            serve.RunTarget(build(shared), name="shared", route_prefix="/"),
            serve.RunTarget(build(small), name="small", route_prefix="/small"),
        ]
    )
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def url(served: str) -> str:
    """The application that most tests share."""
    return served


@pytest.fixture(scope="module")
def small(served: str) -> str:
    """The one that runs one request, lets one wait, and speaks until the model is full."""
    return f"{served}/small"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with connect(url) as client:
        yield client


def connect(url: str) -> openai.OpenAI:
    # Without retries: a test must see the first answer.
    return openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=HTTP_TIMEOUT_S
    )


def create(
    client: openai.OpenAI,
    text: str = "four two",
    voice: str = "slt",
    response_format: str = "wav",
    **extra: object,
) -> tuple[bytes, Any]:
    """Body and headers of one request by the official client."""
    with client.audio.speech.with_streaming_response.create(
        model="sheen",
        input=text,
        voice=voice,
        response_format=response_format,
        extra_body=extra,
    ) as response:
        return response.read(), response.headers


@contextmanager
def opened(url: str, **body: object) -> Iterator[http.client.HTTPResponse]:
    """A response whose headers have come and whose body has not been read."""
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request(
            "POST",
            f"{place.path}/v1/audio/speech",
            json.dumps({"model": "sheen", "voice": "slt", **body}),
            {"Content-Type": "application/json"},
        )
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def get(url: str) -> tuple[int, str]:
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request("GET", place.path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def spoken_here(
    voice: Voice, text: str, speaker: str, sampling: Sampling, max_seconds: float = MAX_SECONDS
) -> NDArray[np.int16]:
    """What the engine gives for a request in this process."""
    engine = Engine(voice.model, voice.codec, slots=1)
    pieces = []
    for item in stream(engine, voice.request(text, speaker, sampling, max_seconds)):
        if not isinstance(item, Finished):
            pieces.append(item)
    engine.close()
    return to_pcm16(np.concatenate(pieces))


# What clients ask before they speak


def test_health_is_what_home_assistants_bridge_looks_for(url: str) -> None:
    assert get(f"{url}/health") == (200, "OK")


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("sheen", "model", "sheen")
    assert model.created > 0


def test_voices_are_those_of_the_recordings(url: str) -> None:
    status, body = get(f"{url}/v1/audio/voices")
    names = ["awb", "kal16", "rms", "slt"]
    assert status == 200
    assert json.loads(body) == {"voices": [{"id": name, "name": name} for name in names]}


def test_a_path_that_is_not_there(url: str) -> None:
    status, body = get(f"{url}/v1/audio/nothing")
    assert status == 404
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


# Speech


def test_the_wav_is_what_the_engine_speaks(client: openai.OpenAI, voice: Voice) -> None:
    body, headers = create(client, seed=7, temperature=0.9, top_p=0.8, top_k=50)
    assert headers["content-type"] == "audio/wav"
    assert headers["x-sample-rate"] == "24000"
    samples, rate = soundfile.read(io.BytesIO(body), dtype="int16")
    assert rate == 24_000
    assert_close(samples, spoken_here(voice, "four two", "slt", Sampling(0.9, 50, 0.8, 7)))

    with av.open(io.BytesIO(body)) as container:
        [audio] = container.streams
        assert (audio.codec_context.name, audio.codec_context.sample_rate) == ("pcm_s16le", 24_000)
        decoded = [frame.to_ndarray()[0] for frame in container.decode(audio)]
    np.testing.assert_array_equal(np.concatenate(decoded), samples)


def test_a_plain_request_gets_a_wav_with_the_default_sampling(
    client: openai.OpenAI, voice: Voice
) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="sheen", input="nine one", voice="rms", extra_body={"seed": 3}
    ) as response:
        body = response.read()
    assert body[:HEADER] == wav_header(24_000)
    samples = np.frombuffer(body[HEADER:], "<i2")
    assert_close(samples, spoken_here(voice, "nine one", "rms", Sampling(seed=3)))


def test_pcm_is_the_wav_without_its_header(client: openai.OpenAI) -> None:
    wav, _ = create(client, seed=7)
    pcm, headers = create(client, response_format="pcm", seed=7)
    assert headers["content-type"] == "audio/pcm"
    assert headers["x-sample-rate"] == "24000"
    assert pcm == wav[HEADER:]


def test_the_seed_decides(client: openai.OpenAI) -> None:
    first, _ = create(client, seed=7)
    assert create(client, seed=7)[0] == first
    assert create(client, seed=8)[0] != first


def test_without_a_seed_no_two_are_alike(client: openai.OpenAI) -> None:
    assert create(client)[0] != create(client)[0]


def test_text_and_voice_decide(client: openai.OpenAI) -> None:
    first, _ = create(client, seed=7)
    assert create(client, text="nine nine", seed=7)[0] != first
    assert create(client, voice="rms", seed=7)[0] != first


def test_the_body_is_chunked(url: str) -> None:
    with opened(url, input="four two", seed=7) as response:
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
    voices = ["slt", "rms", "awb", "kal16"] * 2
    requests = list(zip(texts, voices, range(8), strict=True))

    def ask(request: tuple[str, str, int]) -> NDArray[np.int16]:
        text, voice, seed = request
        pcm, _ = create(client, text, voice, "pcm", seed=seed)
        return np.frombuffer(pcm, "<i2")

    alone = [ask(request) for request in requests]
    assert len({samples.tobytes() for samples in alone}) == 8
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, requests))
    # Not always bytes: a batch's convolutions add in another order than those of one row.
    for samples, expected in zip(together, alone, strict=True):
        assert_close(samples, expected)


# Refusals


def test_an_unknown_voice_lists_the_known_ones(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="awb, kal16, rms, slt") as raised:
        create(client, voice="nobody")
    assert raised.value.param == "voice"
    assert raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("text", ["", " \n\t", "a" * 5000, "a" * 4000])
def test_a_text_that_cannot_be_spoken(client: openai.OpenAI, text: str) -> None:
    # The last one is short enough for the endpoint and too long for the model.
    with pytest.raises(openai.BadRequestError) as raised:
        create(client, text=text)
    assert isinstance(raised.value.body, dict)
    assert set(raised.value.body) == {"message", "type", "param", "code"}
    assert raised.value.param == "input"


def test_a_format_that_is_not_made_is_refused_and_not_replaced(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"wav.*pcm"):
        create(client, response_format="mp3")


# One request at a time

LONG = {
    "input": " ".join(["four two"] * 12),
    "response_format": "pcm",
    "temperature": 0.0,
    "seed": 1,
}
"""Greedy: after a few training steps `<audio_end>` is never the likeliest, so only its budget ends
this, hundreds of frames later."""


def long_text(voice: Voice) -> str:
    """A text that leaves the model no more than 2 frames."""
    return "a" * (voice.model.max_positions - 25)


def test_clients_that_leave_half_way_leave_the_server_serving(small: str, voice: Voice) -> None:
    text = long_text(voice)
    # More than this application, and Serve before it, would hold if they kept their places.
    for _ in range(6):
        with opened(small, **LONG) as response:
            assert response.status == 200
            assert len(response.read(1000)) == 1000
    with connect(small) as client:
        pcm, _ = create(client, text, response_format="pcm", seed=2)
    expected = spoken_here(voice, text, "slt", Sampling(seed=2), 60)
    assert_close(np.frombuffer(pcm, "<i2"), expected)


def test_beyond_what_may_wait_clients_are_told_to_come_back(small: str, voice: Voice) -> None:
    text = long_text(voice)

    def ask(seed: int) -> tuple[int, str | None, bytes]:
        with opened(small, input=text, response_format="pcm", seed=seed) as response:
            return response.status, response.getheader("Retry-After"), response.read()

    with opened(small, **LONG) as running:
        # Its samples have begun to come, so it runs, and nothing waits. It has most frames to go,
        # and the next four are refused or queued on arrival: one place, whatever their order.
        first = running.read(1)
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4)))
        served = [seed for seed, (status, _, _) in enumerate(answers) if status == 200]
        assert sorted(status for status, _, _ in answers) == [200, 429, 429, 429]
        pcm = first + running.read()
    request = voice.request(str(LONG["input"]), "slt", Sampling(0.0), 60)
    assert request.max_frames > 200
    assert len(pcm) == 2 * request.max_frames * voice.codec.frame_samples
    expected = spoken_here(voice, text, "slt", Sampling(seed=served[0]), 60)
    assert_close(np.frombuffer(answers[served[0]][2], "<i2"), expected)
    for status, retry_after, body in answers:
        if status == 429:
            assert retry_after
            assert int(retry_after) >= 1
            error = json.loads(body)["error"]
            assert set(error) == {"message", "type", "param", "code"}
            assert error["type"] == "rate_limit_error"


# The last test: it replaces what the others ask


def test_a_change_of_checkpoint_fails_no_request(small: str, trained: Path, tmp_path: Path) -> None:
    """One replica, the hardest case: what comes while there is none waits for the next."""
    other = shutil.copytree(trained / "checkpoint", tmp_path / "checkpoint")
    args = ServeArgs(
        model=str(other), model_id="other", default_max_seconds=60, slots=1, max_queue=1
    )
    assert '"other"' not in get(f"{small}/v1/models")[1]
    changed = threading.Event()

    def ask_again_and_again() -> list[tuple[int, int]]:
        answers = []
        while not changed.is_set():
            with opened(small, input="one", response_format="pcm", seed=1) as response:
                answers.append((response.status, len(response.read())))
        return answers

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask_again_and_again)
        try:
            serve.run(build(args), name="small", route_prefix="/small")
        finally:
            changed.set()
        answers = asking.result()
    assert len(set(answers)) == 1
    assert answers[0][0] == 200
    assert '"other"' in get(f"{small}/v1/models")[1]
