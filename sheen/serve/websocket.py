"""The WebSocket `/v1/audio/speech/stream`: text in as a language model writes it, audio out.

Owns the conversation on one WebSocket: utterances one after another, each from its first text to
`end` or `cancel`, each admitted, counted and refused like a POST. An error ends its utterance, and
the rest of that text is discarded. A client that is silent for too long loses its utterance, and
later its connection. The messages: `sheen.serve.schema`.
"""

import asyncio
import logging
import time
from contextlib import suppress

from fastapi import WebSocket, WebSocketDisconnect

from sheen.serve.access.limits import (
    IDLE_S,
    MAX_UTTERANCE_CHARACTERS,
    POLICY_VIOLATION,
    SILENT_S,
    Closing,
    Inbox,
)
from sheen.serve.access.middleware import answered_protocol, check_key
from sheen.serve.backend import Backend
from sheen.serve.config import Limits
from sheen.serve.errors import APIError, unforeseen
from sheen.serve.request_log import close_record, open_record, refused
from sheen.serve.responses import ending, rendered
from sheen.serve.schema import Cancel, End, SpeechSettings, Start, Text
from sheen.serve.voices.references import NamedReference

logger = logging.getLogger(__name__)

TICK_S = 5.0
SWITCHED, GOING_AWAY, TRY_LATER = 101, 1001, 1013
"""HTTP's status of a WebSocket; two of its close codes (RFC 6455, 7.4.1, and IANA's registry)."""


class SocketUtterance:
    """One utterance on its way: text in, frames of audio out, a message at the end."""

    def __init__(
        self,
        socket: WebSocket,
        backend: Backend,
        settings: SpeechSettings,
        reference: NamedReference | None,
    ) -> None:
        """Raises APIError when it is not admitted."""
        self.complete = False
        """Whether all of its text is there."""
        self.failed = False
        self._socket = socket
        self._record = open_record(socket.scope)
        self._record.status = SWITCHED
        try:
            self._utterance = backend.begin(settings, self._record, reference)
        except BaseException:
            self._record.cleanup.close()  # the refusal gets a record of its own
            raise
        self._active = time.monotonic()
        self._task = asyncio.create_task(self._send())
        self._task.add_done_callback(lambda _: close_record(self._record))

    @property
    def sending(self) -> bool:
        return not self._task.done()

    @property
    def idle_s(self) -> float:
        """Seconds without a text in or audio out, while more text must come."""
        waiting = self.sending and not self.complete
        return time.monotonic() - self._active if waiting else 0.0

    async def add(self, text: str) -> None:
        """Raises APIError when it has become too long."""
        if text:
            self._active = time.monotonic()
        self._record.characters += len(text)
        if self._record.characters > MAX_UTTERANCE_CHARACTERS:
            raise APIError(
                400,
                f"text: more than {MAX_UTTERANCE_CHARACTERS} characters without an end",
                param="text",
            )
        await self._utterance.feed(text, "text")

    def end(self) -> None:
        """Raises APIError when the end of the text cannot be spoken."""
        self._utterance.close("text")
        self.complete = True

    async def stop(self) -> None:
        """After this not a byte more of it is sent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self) -> None:
        try:
            async for data in rendered(self._utterance, self._record):
                await self._socket.send_bytes(data)
                self._active = time.monotonic()
            await self._socket.send_json({"type": "speech.audio.done", **ending(self._record)})
        except WebSocketDisconnect:
            pass  # who receives on this socket hears of it too
        except Exception as error:
            known = error if isinstance(error, APIError) else unforeseen(error)
            if known is not error:
                logger.exception("speech on a WebSocket failed")
            self.failed = True
            self._record.status = known.status
            self._record.blame(known)
            await send_error(self._socket, known)


async def converse(socket: WebSocket, backend: Backend, limits: Limits) -> None:
    """Serve one WebSocket until its client leaves, or breaks a limit."""
    await socket.accept(answered_protocol(socket.scope))
    if backend.open_sockets >= backend.max_sockets:
        error = APIError(
            429, f"{backend.open_sockets} WebSockets are open", code="too_many_sockets"
        )
        await refuse(socket, error)
        await socket.close(TRY_LATER)
        return
    conversation = Conversation(socket, backend, limits)
    backend.open_sockets += 1
    try:
        while (code := await conversation.step()) is None:
            pass
        await socket.close(code)
    except WebSocketDisconnect:
        pass
    finally:
        backend.open_sockets -= 1
        await conversation.stop()


class Conversation:
    """What one client has said so far."""

    def __init__(self, socket: WebSocket, backend: Backend, limits: Limits) -> None:
        self._socket, self._backend = socket, backend
        self._inbox = Inbox(limits)
        self._settings: SpeechSettings | None = None
        self._current: SocketUtterance | None = None
        self._discarding = False  # after an error, to the rest of that text
        self._spoke = time.monotonic()
        self._start_timeout_s = limits.start_timeout_s
        self._start_by = self._spoke + limits.start_timeout_s

    async def step(self) -> int | None:
        """Take a message and do what it says; a close code when the line is to be closed.

        WebSocketDisconnect when the client has left.
        """
        try:
            self._check_line()
            if self._speaking is not None:
                self._spoke = time.monotonic()
            elif time.monotonic() - self._spoke > SILENT_S:
                return GOING_AWAY
            message = await self._receive()
            if message is None:
                return self._tick()
            if isinstance(message, Start):
                self._start(message)
            elif isinstance(message, Text):
                await self._text(message.text)
            elif isinstance(message, End):
                await self._end()
            else:
                await self.stop()
                self._discarding = False
                await self._socket.send_json({"type": "speech.audio.cancelled"})
        except Closing as error:
            await self.stop()
            await refuse(self._socket, error)
            return error.close_code
        except APIError as error:
            speaking = self._speaking
            if speaking is not None and not speaking.complete:
                # What follows would be spoken with a hole in it, and end as if it were whole.
                await self.stop()
                self._discarding = True
            await refuse(self._socket, error)
        return None

    def _check_line(self) -> None:
        """Closing for a line that may not go on: its key is good no more, or nobody starts."""
        try:
            check_key(self._socket.scope)
        except APIError as error:
            raise Closing(POLICY_VIOLATION, error.status, str(error), error.code) from error
        if self._settings is None and time.monotonic() >= self._start_by:
            reason = f"no start after {self._start_timeout_s:g} s"
            raise Closing(POLICY_VIOLATION, 408, reason, "start_timeout")

    async def stop(self) -> None:
        """Stop what is being spoken."""
        if self._current is not None:
            await self._current.stop()
            self._current = None

    def _tick(self) -> int | None:
        """Nothing came for a while. A close code when nothing will."""
        if self._speaking is None:
            return GOING_AWAY if self._backend.admission.draining else None
        if self._speaking.idle_s >= IDLE_S:
            raise APIError(400, f"no text and no end for {IDLE_S:g} s", code="idle")
        return None

    @property
    def _speaking(self) -> SocketUtterance | None:
        return self._current if self._current is not None and self._current.sending else None

    def _start(self, settings: SpeechSettings) -> None:
        if self._speaking is not None:
            raise APIError(
                400, "type: start while something is spoken; end or cancel it first", param="type"
            )
        if settings.ssml:
            raise APIError(
                400, "ssml: a WebSocket takes text alone; send the document by POST", param="ssml"
            )
        self._settings, self._discarding = settings, False

    async def _text(self, text: str) -> None:
        if self._settings is None:
            raise APIError(400, "type: text before start; send start first", param="type")
        if self._discarding or (
            self._current and self._current.failed and not self._current.complete
        ):
            self._discarding = True
            return
        speaking = self._speaking
        if speaking is None:
            self._discarding = True  # unless it is admitted
            reference = await self._backend.reference(self._settings)
            speaking = self._current = SocketUtterance(
                self._socket, self._backend, self._settings, reference
            )
            self._discarding = False
        elif speaking.complete:
            raise APIError(
                400,
                "type: text after end; wait for speech.audio.done, or cancel",
                param="type",
            )
        await speaking.add(text)

    async def _end(self) -> None:
        if self._discarding or (
            self._current and self._current.failed and not self._current.complete
        ):
            self._discarding, self._current = False, None  # the client has been told
            return
        if self._speaking is None or self._speaking.complete:
            raise APIError(400, "type: end without text before it", param="type")
        try:
            self._speaking.end()
        except APIError:
            await self.stop()  # here, for there is no rest of the text to be discarded
            raise

    async def _receive(self) -> Start | Text | End | Cancel | None:
        """The next message; None when none has come for TICK_S. APIError for one that is none of
        ours, Closing for one that breaks a limit."""
        wait_s = TICK_S if self._settings else min(TICK_S, self._start_by - time.monotonic())
        try:
            async with asyncio.timeout(wait_s):
                received = await self._socket.receive()
        except TimeoutError:
            return None
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        return self._inbox.take(received)


async def refuse(socket: WebSocket, error: APIError) -> None:
    """Enter an error, and tell it."""
    refused(socket.scope, error)
    await send_error(socket, error)


async def send_error(socket: WebSocket, error: APIError) -> None:
    """Tell the client, if it is still there."""
    with suppress(WebSocketDisconnect, RuntimeError):  # the second: closed already
        await socket.send_json({"type": "error", **error.body()})
