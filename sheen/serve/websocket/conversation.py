"""The WebSocket `/v1/audio/speech/stream`: text in as a language model writes it, audio out.

Owns the line of one client: which messages it speaks by, that it starts in time, and that one who
is silent for too long loses its utterance, and later its connection. What is spoken is admitted,
counted and refused like a POST. What the messages do: `utterances`, which are Sheen's own, and
`sessions`, vLLM-Omni's; what they hold: `sheen.serve.schema.messages`.
"""

import asyncio
import time
from typing import Protocol

from fastapi import WebSocket, WebSocketDisconnect

from sheen.serve.access.limits import IDLE_S, POLICY_VIOLATION, SILENT_S, Closing, Inbox
from sheen.serve.access.middleware import answered_protocol, check_key
from sheen.serve.backend import Backend
from sheen.serve.config import Limits
from sheen.serve.errors import APIError, send_error
from sheen.serve.request_log import refused
from sheen.serve.schema.messages import ClientMessage, SessionConfig
from sheen.serve.websocket.sessions import Session
from sheen.serve.websocket.utterances import Utterances

TICK_S = 5.0
GOING_AWAY, TRY_LATER = 1001, 1013
"""Close codes of WebSockets (RFC 6455, 7.4.1, and IANA's registry)."""


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


class Dialect(Protocol):
    """Messages of one kind, and what they make of a client: `Utterances`, `Session`."""

    @property
    def started(self) -> bool:
        """Whether the client has said how it wants to be spoken to."""

    @property
    def speaking(self) -> bool:
        """Whether something is being spoken, or waits for the rest of its text."""

    @property
    def idle_s(self) -> float:
        """Seconds without a text in or audio out, while more text must come."""

    async def take(self, message: ClientMessage) -> int | None:
        """Do what a message says; a close code at the end. Raises APIError."""

    async def fail(self) -> None:
        """The client has been told of an error: discard what it spoils."""

    async def stop(self) -> None:
        """After this not a byte more is sent."""


class Conversation:
    """One client's line."""

    def __init__(self, socket: WebSocket, backend: Backend, limits: Limits) -> None:
        self._socket, self._backend = socket, backend
        self._inbox = Inbox(limits)
        self._dialect: Dialect = Utterances(socket, backend)
        self._spoke = time.monotonic()
        self._start_timeout_s = limits.start_timeout_s
        self._start_by = self._spoke + limits.start_timeout_s

    async def step(self) -> int | None:
        """Take a message and do what it says; a close code when the line is to be closed.

        WebSocketDisconnect when the client has left.
        """
        try:
            self._check_line()
            if self._dialect.speaking:
                self._spoke = time.monotonic()
            elif time.monotonic() - self._spoke > SILENT_S:
                return GOING_AWAY
            message = await self._receive()
            if message is None:
                return self._tick()
            if isinstance(message, SessionConfig) and not self._dialect.started:
                self._dialect = Session(self._socket, self._backend)
            return await self._dialect.take(message)
        except Closing as error:
            await self.stop()
            await refuse(self._socket, error)
            return error.close_code
        except APIError as error:
            await self._dialect.fail()
            await refuse(self._socket, error)
        return None

    def _check_line(self) -> None:
        """Closing for a line that may not go on: its key is good no more, or nobody starts."""
        try:
            check_key(self._socket.scope)
        except APIError as error:
            raise Closing(POLICY_VIOLATION, error.status, str(error), error.code) from error
        if not self._dialect.started and time.monotonic() >= self._start_by:
            reason = f"no start after {self._start_timeout_s:g} s"
            raise Closing(POLICY_VIOLATION, 408, reason, "start_timeout")

    async def stop(self) -> None:
        """Stop what is being spoken."""
        await self._dialect.stop()

    def _tick(self) -> int | None:
        """Nothing came for a while. A close code when nothing will."""
        if not self._dialect.speaking:
            return GOING_AWAY if self._backend.admission.draining else None
        if self._dialect.idle_s >= IDLE_S:
            raise APIError(400, f"no text and no end for {IDLE_S:g} s", code="idle")
        return None

    async def _receive(self) -> ClientMessage | None:
        """The next message; None when none has come for TICK_S. APIError for one that is none of
        ours, Closing for one that breaks a limit."""
        started = self._dialect.started
        wait_s = TICK_S if started else min(TICK_S, self._start_by - time.monotonic())
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
