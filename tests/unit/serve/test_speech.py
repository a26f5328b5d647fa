"""Rendering: samples to bytes, in another thread or not, and events."""

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sheen.audio.io import Samples, decode_audio, to_pcm16
from sheen.serve.speech import Renderer, delta_event

RATE = 24_000


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def tone(seconds: float) -> Samples:
    return (0.5 * np.sin(np.arange(round(seconds * RATE)) * 0.1)).astype(np.float32)


async def render(renderer: Renderer, chunks: list[Samples]) -> bytes:
    parts = [await renderer.push(chunk) for chunk in chunks]
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
            await renderer.push(tone(0.1))
            pushing = asyncio.create_task(renderer.push(tone(1.0)))
            await asyncio.sleep(0)
            pushing.cancel()
            renderer.close()
            assert await renderer.push(tone(0.1)) == b""

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
