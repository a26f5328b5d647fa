"""What tests of the served application share: starting it, asking it, and what it should say."""

import http.client
import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from typing import Any
from urllib.parse import urlsplit

import av
import numpy as np
import openai
from numpy.typing import NDArray
from ray import serve

from helpers.example import VOICE
from helpers.speaking import samples_of
from sheen.audio.io import to_pcm16, wav_header
from sheen.engine.engine import Engine
from sheen.engine.synthesis import synthesize
from sheen.engine.types import Sampling, SynthesisParams
from sheen.engine.voice import Voice
from sheen.serve.app import build
from sheen.serve.config import ServeArgs

HTTP_TIMEOUT_S = 120
MAX_SECONDS = 0.7
"""Of a chunk: the tests' model hardly ever ends by itself."""
HEADER = len(wav_header(24_000))
FRAME = 2048
"""Samples of a coarse codec frame."""
KEY = "a-key-of-the-tests"
BEARER = {"Authorization": f"Bearer {KEY}"}


@contextmanager
def serving(port: int, args: ServeArgs, name: str, route_prefix: str) -> Iterator[str]:
    """An application under the Serve at that port; its address."""
    try:
        serve.run(build(args), name=name, route_prefix=route_prefix)
        yield f"http://127.0.0.1:{port}{route_prefix}".rstrip("/")
    finally:
        serve.delete(name)


def connect(url: str) -> openai.OpenAI:
    # Without retries: a test must see the first answer.
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=HTTP_TIMEOUT_S)


def create(
    client: openai.OpenAI,
    text: str = "four two",
    voice: str = VOICE,
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
            json.dumps({"model": "sheen", "voice": VOICE, **body}),
            {"Content-Type": "application/json", **BEARER},
        )
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def get(url: str, **headers: str) -> tuple[int, str]:
    status, _, body = asked("GET", url, **headers)
    return status, body.decode()


def asked(method: str, url: str, **headers: str) -> tuple[int, Message, bytes]:
    place = urlsplit(url)
    assert place.hostname
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=HTTP_TIMEOUT_S)
    try:
        connection.request(method, place.path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def spoken_here(
    voice: Voice, text: str, speaker: str, sampling: Sampling, max_seconds: float = MAX_SECONDS
) -> NDArray[np.int16]:
    """What a request's speech is in this process, with an engine of its own."""

    engine = Engine(voice.model, voice.codec, slots=1, max_seq_len=voice.max_seq_len(max_seconds))
    try:
        params = SynthesisParams(speaker, sampling, max_seconds)
        return to_pcm16(samples_of(synthesize(engine, voice, text, params)))
    finally:
        engine.close()


def decoded(body: bytes) -> NDArray[np.float32]:
    """What a player hears, at 24 kHz."""
    with av.open(io.BytesIO(body)) as container:
        resampler = av.AudioResampler("flt", "mono", 24_000)
        frames = [
            converted.to_ndarray()[0]
            for frame in container.decode(audio=0)
            for converted in resampler.resample(frame)
        ]
        frames += [converted.to_ndarray()[0] for converted in resampler.resample(None)]
    return np.concatenate(frames)


def state(application: str) -> dict[str, float]:
    found: dict[str, float] = serve.get_app_handle(application).state.remote().result()
    return found


def wait_until_free(application: str) -> None:
    """For every place and every slot."""
    deadline = time.monotonic() + HTTP_TIMEOUT_S
    while (found := state(application))["inside"] or found["running"] or found["waiting"]:
        assert time.monotonic() < deadline, found


def wait_until_inside(application: str, requests: int) -> None:
    """As many have been let in."""
    deadline = time.monotonic() + HTTP_TIMEOUT_S
    while (inside := state(application)["inside"]) < requests:
        assert time.monotonic() < deadline, inside
