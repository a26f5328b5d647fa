"""One request to a speech endpoint, and what became of it.

Owns what is asked of a server, how its answers are read (by their Content-Type, as clients do) and
what counts as a failure. aiohttp, which Ray brings, takes half of httpx's processor time: 64
streams as fast as they are played cost 6% of a core (AMD EPYC).
"""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from listener import Listener
from serve_audio import Chunk, Undecodable, playable

SPEECH = "/v1/audio/speech"
EVENT_STREAM = "text/event-stream"
PCM_RATE = 24_000
"""Hz, where the answer has no x-sample-rate: what every client takes pcm for."""
RETRY_S = 1.0
REFUSED = 429
KEEP_S = 2.0
"""An idle connection is used again for so long: less than servers keep theirs (uvicorn: 5 s), or a
request that meets its end would count as cut off."""
LONGEST_MESSAGE = 200


class UsageError(ValueError):
    """What was asked for cannot be done: it says what and why."""


def base_of(url: str) -> str:
    """Of a server: without the `/v1` that clients are given."""
    return url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True)
class Endpoint:
    """What all requests of a run share."""

    url: str
    model: str
    voice: str
    audio_format: str
    stream_format: str

    def body(self, text: str) -> dict[str, Any]:
        body = {
            "model": self.model,
            "input": text,
            "voice": self.voice,
            "response_format": self.audio_format,
        }
        if self.stream_format != "audio":  # the default; some servers do not know the field
            body["stream_format"] = self.stream_format
        return body


@dataclass
class Outcome:
    """Of one request. Times are of `time.monotonic`, seconds."""

    asked: float
    ended: float = 0.0
    first_byte: float | None = None
    """Of audio: the first chunk of a body, or the first event with audio."""
    refused: bool = False
    error: str = ""
    """Its kind, such as `HTTP 500`; empty if the request was refused or all went well."""
    message: str = ""
    retry_s: float = RETRY_S
    """Before the server wants to be asked again."""
    listener: Listener = field(default_factory=lambda: Listener(PCM_RATE))

    @property
    def ok(self) -> bool:
        return not self.refused and not self.error


class _Failed(Exception):
    """Its kind and a message."""

    @property
    def parts(self) -> tuple[str, str]:
        return str(self.args[0]), str(self.args[1])[:LONGEST_MESSAGE]


def open_session(api_key: str, timeout_s: float) -> aiohttp.ClientSession:
    """For any number of requests at once; each fails if nothing comes for so long."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s),
    )


async def ask(session: aiohttp.ClientSession, endpoint: Endpoint, text: str) -> Outcome:
    """Have a text spoken and hear it all. Failures are in the outcome, none is raised."""
    outcome = Outcome(time.monotonic())
    chunks: list[Chunk] = []
    rate = PCM_RATE
    try:
        async with session.post(endpoint.url + SPEECH, json=endpoint.body(text)) as response:
            if response.status != 200:
                await _read_refusal(response, outcome)
            else:
                named = response.headers.get("x-sample-rate", "")
                rate = int(named) if named.isdigit() else PCM_RATE
                async for chunk in _audio(response):
                    chunks.append(chunk)
        outcome.ended = time.monotonic()
        if outcome.ok:
            # Beside the loop, so that the arrivals of other streams are noted in time.
            await asyncio.to_thread(_hear, outcome, chunks, endpoint.audio_format, rate)
    except _Failed as failure:
        outcome.error, outcome.message = failure.parts
    except TimeoutError:
        outcome.error = "time-out"
    except aiohttp.ClientConnectorError as error:
        outcome.error, outcome.message = "no connection", str(error)
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, ConnectionError) as error:
        outcome.error, outcome.message = "cut off", str(error)
    except (aiohttp.ClientError, OSError) as error:
        outcome.error, outcome.message = type(error).__name__, str(error)
    outcome.ended = outcome.ended or time.monotonic()
    return outcome


async def _read_refusal(response: aiohttp.ClientResponse, outcome: Outcome) -> None:
    text = await response.text(errors="replace")
    outcome.message = text[:LONGEST_MESSAGE]
    after = response.headers.get("Retry-After", "")
    if after.isdigit():
        outcome.retry_s = float(after)
    if response.status == REFUSED:
        outcome.refused = True
    else:
        outcome.error = f"HTTP {response.status}"


async def _audio(response: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
    kind = response.content_type
    if kind == EVENT_STREAM:
        async for chunk in _deltas(response):
            yield chunk
    elif kind.startswith("audio/") or kind == "application/octet-stream":
        async for data in response.content.iter_any():
            yield Chunk(time.monotonic(), data)
    else:
        raise _Failed("no audio", f"the answer is {kind}")


async def _deltas(response: aiohttp.ClientResponse) -> AsyncIterator[Chunk]:
    """Of an event stream that ends with its done event."""
    done = False
    held = b""
    async for data in response.content.iter_any():
        now = time.monotonic()
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            event = _event(line.removeprefix(b"data:").strip())
            kind = event.get("type")
            if "error" in event:
                raise _Failed("error event", json.dumps(event["error"]))
            if kind == "speech.audio.delta":
                yield Chunk(now, _delta(event))
            done = done or kind == "speech.audio.done"
    if not done:
        raise _Failed("cut off", "the events ended without speech.audio.done")


def _event(data: bytes) -> Mapping[str, Any]:
    if data == b"[DONE]":  # some servers end all their event streams so
        return {}
    try:
        event = json.loads(data)
    except ValueError as error:
        raise _Failed("bad event", f"{error}: {data[:80]!r}") from error
    if not isinstance(event, dict):
        raise _Failed("bad event", f"not a JSON object: {data[:80]!r}")
    return event


def _delta(event: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise _Failed("bad event", f"a delta without audio in base64: {error}") from error


def _hear(outcome: Outcome, chunks: list[Chunk], audio_format: str, rate: int) -> None:
    chunks = [chunk for chunk in chunks if chunk.data]
    if not chunks:
        raise _Failed("no audio", "the answer has no bytes")
    outcome.first_byte = chunks[0].at
    try:
        rate, parts = playable(chunks, audio_format, rate)
    except Undecodable as error:
        raise _Failed("undecodable", str(error)) from error
    outcome.listener = Listener(rate)
    for part in parts:
        outcome.listener.came(part.at, part.samples)
    if not outcome.listener.samples:
        raise _Failed("no audio", "the answer has no samples")


async def first_id(session: aiohttp.ClientSession, url: str, key: str, flag: str) -> str:
    """The first id of a server's list of voices or models. Raises UsageError."""
    try:
        async with session.get(url) as response:
            status = response.status
            answer = await response.json(content_type=None) if status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise UsageError(f"{url}: {error or 'no answer in time'}") from error
    if status not in (200, 404):
        raise UsageError(f"{url} answers with status {status}")
    entries = answer.get(key) if isinstance(answer, dict) else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(found := entry.get("id"), str):
            return found
    raise UsageError(f"{url} names none; name one with {flag}")
