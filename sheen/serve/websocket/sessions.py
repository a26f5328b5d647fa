"""vLLM-Omni's messages on the WebSocket: `session.config`, `input.text`, `input.done` and
`session.close`.

Owns a session: utterances, each of the text up to an `input.done`, spoken one after another while
further ones arrive. An utterance is one part, or with `split_granularity` one part for each
sentence; a part is answered by `audio.start`, its audio and `audio.done`, an utterance by
`session.done`. A part that fails has an error, and the next one follows; after an error of the
client, the rest of that utterance is discarded. Fields of the messages:
`sheen.serve.schema.messages`.
"""

import asyncio
import base64
import logging
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from fastapi import WebSocket, WebSocketDisconnect

from sheen.serve.access.limits import NORMAL
from sheen.serve.errors import APIError, send_error, unforeseen
from sheen.serve.rendering import ending, rendered
from sheen.serve.request_log import SWITCHED, close_record, open_record
from sheen.serve.schema.messages import (
    ClientMessage,
    InputDone,
    InputText,
    SessionClose,
    SessionConfig,
)
from sheen.serve.schema.requests import MAX_UTTERANCE_CHARACTERS
from sheen.serve.websocket.utterances import refuse_ssml
from sheen.serve.word_times import WordTime
from sheen.text.delivery import Budget
from sheen.text.segmentation import SentenceStream

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.backend import Backend
    from sheen.serve.voices.references import NamedReference

logger = logging.getLogger(__name__)

SAMPLE_BYTES = 2
"""Bytes of a sample of PCM."""
MAX_WAITING = 64
"""Utterances that may wait for earlier ones."""


class SessionUtterance:
    """The text of one utterance as it arrives: parts to be spoken, as they become complete."""

    def __init__(self, index: int, config: SessionConfig, language: str | None) -> None:
        self.index, self.config = index, config
        self.complete = False
        """Whether `input.done` has been received."""
        self.admitted = self.discarded = False
        self.budget = Budget()
        self._reference: tuple[NamedReference | None] | None = None
        self.characters = 0
        self._sentences = None
        if config.split_granularity != "none":
            self._sentences = SentenceStream(language)
        self._text = ""
        self._parts: asyncio.Queue[str | None] = asyncio.Queue()

    async def reference(self, backend: "Backend") -> "NamedReference | None":
        """The reference for its voice, which serves all parts, also after a deletion. Raises
        APIError."""
        if self._reference is None:
            self._reference = (await backend.reference(self.config),)
        return self._reference[0]

    def add(self, text: str) -> None:
        """Add text. Raises APIError when the utterance has become too long."""
        self.characters += len(text)
        if self.characters > MAX_UTTERANCE_CHARACTERS:
            raise APIError(
                400,
                f"text: more than {MAX_UTTERANCE_CHARACTERS} characters without input.done",
                param="text",
            )
        if self._sentences is None:
            self._text += text
        else:
            self._put(self._sentences.push(text))

    def end(self) -> None:
        self._put([self._text] if self._sentences is None else self._sentences.finish())
        self.complete = True
        self._parts.put_nowait(None)

    def discard(self) -> None:
        """Drop everything that has not been spoken yet."""
        self.discarded = True
        self._parts.put_nowait(None)

    async def next(self) -> str | None:
        """The next part; None when there is no more. Waits for it."""
        part = await self._parts.get()
        return None if self.discarded else part

    def _put(self, parts: list[str]) -> None:
        for part in filter(None, parts):
            self._parts.put_nowait(part)


class Session:
    """A client's session: its settings, and its utterances that wait or are being spoken."""

    def __init__(self, socket: WebSocket, backend: "Backend") -> None:
        self._socket, self._backend = socket, backend
        self._config: SessionConfig | None = None
        self._open: SessionUtterance | None = None
        self._waiting: asyncio.Queue[SessionUtterance] = asyncio.Queue(MAX_WAITING)
        self._count = 0
        self._task: asyncio.Task[None] | None = None
        self._active = time.monotonic()

    @property
    def started(self) -> bool:
        return self._config is not None

    @property
    def speaking(self) -> bool:
        return self._coming or (self._task is not None and not self._task.done())

    @property
    def _coming(self) -> bool:
        """Whether more text is expected."""
        return self._open is not None and not self._open.discarded

    @property
    def idle_s(self) -> float:
        """Seconds without text in or audio out, while more text is expected."""
        return time.monotonic() - self._active if self._coming else 0.0

    async def take(self, message: ClientMessage) -> int | None:
        """Handle a message. Returns a close code at the end. Raises APIError for an invalid one."""
        if isinstance(message, SessionConfig):
            if self._open is not None:
                # Sent, not raised, since raising would discard the open utterance.
                reason = "type: session.config within an utterance; send input.done first"
                await send_error(self._socket, APIError(400, reason, param="type"))
                return None
            refuse_ssml(message)
            if message.word_timestamps and not (
                message.stream_audio and message.response_format == "pcm"
            ):
                raise APIError(
                    400,
                    "word_timestamps: needs stream_audio true and response_format pcm here",
                    param="word_timestamps",
                )
            self._config = message
        elif isinstance(message, InputText):
            if message.text:
                self._active = time.monotonic()
                utterance = self._open or self._begin()
                if not utterance.discarded:
                    utterance.add(message.text)
        elif isinstance(message, InputDone):
            utterance, self._open = self._open or self._begin(), None
            if not utterance.discarded:
                utterance.end()
        elif isinstance(message, SessionClose):
            await self.fail()
            await asyncio.gather(*filter(None, [self._task]), return_exceptions=True)
            return NORMAL
        else:
            raise APIError(400, f"type: {message.type} is not a message of a session", param="type")
        return None

    async def fail(self) -> None:
        """Discard the open utterance after an error: its further text would be spoken with a
        gap."""
        if self._open is not None:
            self._open.discard()

    async def stop(self) -> None:
        """Stop speaking. Nothing is sent after this returns."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self) -> SessionUtterance:
        assert self._config is not None
        utterance = SessionUtterance(self._count, self._config, self._backend.voice.language)
        try:
            self._waiting.put_nowait(utterance)
        except asyncio.QueueFull:
            raise APIError(
                429,
                f"{MAX_WAITING} utterances are waiting; wait for session.done",
                code="rate_limit_exceeded",
            ) from None
        self._open = utterance
        self._count += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._speak())
        return utterance

    async def _speak(self) -> None:
        try:
            while not self._waiting.empty():
                await self._utter(self._waiting.get_nowait())
        except WebSocketDisconnect:
            pass  # the task that receives gets it too

    async def _utter(self, utterance: SessionUtterance) -> None:
        """Speak an utterance part by part, with one place among the requests."""
        parts = 0
        with ExitStack() as place:
            while (text := await utterance.next()) is not None:
                await self._part(utterance, text, parts, place)
                parts += 1
        done = {"type": "session.done", "utterance_index": utterance.index}
        await self._socket.send_json(done | {"total_sentences": parts})

    async def _part(
        self, utterance: SessionUtterance, text: str, number: int, place: ExitStack
    ) -> None:
        config, rate = utterance.config, self._backend.sample_rate
        where = {"utterance_index": utterance.index, "sentence_index": number}
        start = {"type": "audio.start", **where, "sentence_text": text}
        form = {"format": config.response_format, "sample_rate": rate, "channels": 1}
        aligned = {"word_timestamps": True} if config.word_timestamps else {}
        await self._socket.send_json(start | form | aligned)
        record = open_record(self._socket.scope)
        record.status, record.characters = SWITCHED, len(text)
        frames = Frames(self._socket, where, rate, as_messages=config.word_timestamps)
        failure: APIError | None = None
        try:
            if not utterance.admitted:
                place.enter_context(self._backend.admission.enter(config.model_dump_json()))
                utterance.admitted = True
            reference = await utterance.reference(self._backend)
            spoken = self._backend.begin(
                config,
                record,
                reference,
                whole=not config.stream_audio,
                admitted=True,
                budget=utterance.budget,
            )
            await spoken.feed(text, "text")
            spoken.close("text")
            async for data in rendered(spoken, record):
                if data:
                    await frames.send(data)
                self._active = time.monotonic()
            if spoken.words is not None:
                await frames.send(b"", await spoken.words.all())
        except WebSocketDisconnect:
            raise
        except Exception as error:
            failure = error if isinstance(error, APIError) else unforeseen(error)
            if failure is not error:
                logger.exception("speech on a WebSocket failed")
            record.status = failure.status
            record.blame(failure)
            await send_error(self._socket, failure)
        finally:
            close_record(record)
        done = {"type": "audio.done", **where, "total_bytes": frames.bytes}
        result = {"error": True} if failure is not None else {"error": False, **ending(record)}
        await self._socket.send_json(done | result)


class Frames:
    """Sends the audio of one part: in binary frames, or in messages with word times."""

    def __init__(
        self, socket: WebSocket, where: dict[str, int], sample_rate: int, *, as_messages: bool
    ) -> None:
        """as_messages: for PCM only."""
        self.bytes = 0
        self._socket, self._where, self._rate = socket, where, sample_rate
        self._as_messages = as_messages
        self._count = 0

    async def send(self, data: bytes, words: list[WordTime] | None = None) -> None:
        """Send audio; or none, with the times of all words before it."""
        start_ms = self._ms
        self.bytes += len(data)
        if not self._as_messages:
            await self._socket.send_bytes(data)
            return
        await self._socket.send_json(
            {
                "type": "audio.chunk",
                **self._where,
                "chunk_id": self._count,
                "chunk_start_ms": start_ms if data else 0,
                "chunk_end_ms": self._ms,
                "sample_rate": self._rate,
                "channels": 1,
                "audio_b64": base64.b64encode(data).decode(),
                "timestamps": words,
            }
        )
        self._count += 1

    @property
    def _ms(self) -> int:
        return round(1000 * self.bytes / SAMPLE_BYTES / self._rate)
