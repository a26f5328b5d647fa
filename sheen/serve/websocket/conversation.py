"""The WebSocket `/v1/audio/speech/stream`: text in as a language model writes it, audio out.

Owns the connection of one client: its dialect of messages, the deadline of its start, and the
limits of silence, after which it loses its utterance, and later its connection. Speech is admitted,
counted and refused like a POST. Handling of messages: `utterances` for Sheen's own, `sessions` for
vLLM-Omni's; their fields: `sheen.serve.schema.messages`.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from fastapi import WebSocket, WebSocketDisconnect

from sheen.serve.access.limits import (
    IDLE_S,
    POLICY_VIOLATION,
    SILENT_S,
    TOO_BIG,
    Closing,
    Inbox,
)
from sheen.serve.access.middleware import answered_protocol, check_key
from sheen.serve.config import ClientLimits
from sheen.serve.errors import APIError, message_too_large, send_error
from sheen.serve.request_log import refused
from sheen.serve.schema.messages import ClientMessage, SessionConfig
from sheen.serve.websocket.sessions import Session
from sheen.serve.websocket.utterances import Utterances

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.backend import Backend

TICK_S = 5.0
GOING_AWAY, TRY_LATER = 1001, 1013
"""Close codes of WebSockets (RFC 6455, 7.4.1, and IANA's registry)."""


async def converse(socket: WebSocket, backend: "Backend", limits: ClientLimits) -> None:
    """Serve one WebSocket until its client disconnects, or breaks a limit."""
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
    """One dialect of messages, and its state for one client: `Utterances`, `Session`."""

    @property
    def started(self) -> bool:
        """Whether the client has sent its settings."""

    @property
    def speaking(self) -> bool:
        """Whether something is being spoken, or waits for the rest of its text."""

    @property
    def idle_s(self) -> float:
        """Seconds without text in or audio out, while more text is expected."""

    async def take(self, message: ClientMessage) -> int | None:
        """Handle a message. Returns a close code at the end. Raises APIError."""

    async def fail(self) -> None:
        """Discard the text that an error spoils. Called before the error is sent."""

    async def stop(self) -> None:
        """Stop speaking. Nothing is sent after this returns."""


class Conversation:
    """One client's connection."""

    def __init__(self, socket: WebSocket, backend: "Backend", limits: ClientLimits) -> None:
        self._socket, self._backend = socket, backend
        self._inbox = Inbox(limits)
        self._dialect: Dialect = Utterances(socket, backend)
        self._spoke = time.monotonic()
        self._limits = limits
        self._start_by = self._spoke + limits.body_timeout_s

    async def step(self) -> int | None:
        """Receive a message and handle it. Returns a close code when the connection must be closed.

        WebSocketDisconnect when the client has disconnected.
        """
        try:
            self._check_connection()
            if self._dialect.speaking:
                self._spoke = time.monotonic()
            elif time.monotonic() - self._spoke > SILENT_S:
                return GOING_AWAY
            # Not only in TICK_S without a message: empty texts would keep a place for ever.
            if self._dialect.idle_s >= IDLE_S:
                raise APIError(400, f"no text and no end for {IDLE_S:g} s", code="idle")
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

    def _check_connection(self) -> None:
        """Raise Closing if the key is no longer valid, or the client has not started in time."""
        try:
            check_key(self._socket.scope)
        except APIError as error:
            raise Closing(POLICY_VIOLATION, error.status, str(error), error.code) from error
        if not self._dialect.started and time.monotonic() >= self._start_by:
            reason = f"no start after {self._limits.body_timeout_s:g} s"
            raise Closing(POLICY_VIOLATION, 408, reason, "start_timeout")

    async def stop(self) -> None:
        """Stop what is being spoken."""
        await self._dialect.stop()

    def _tick(self) -> int | None:
        """Handle TICK_S without a message. Returns a close code when none is expected."""
        ends = self._backend.admission.draining and not self._dialect.speaking
        return GOING_AWAY if ends else None

    async def _receive(self) -> ClientMessage | None:
        """The next message; None after TICK_S without one. APIError for an invalid message, Closing
        for one that breaks a limit."""
        started = self._dialect.started
        wait_s = TICK_S if started else min(TICK_S, self._start_by - time.monotonic())
        try:
            async with asyncio.timeout(wait_s):
                received = await self._socket.receive()
        except TimeoutError:
            return None
        if received["type"] == "websocket.disconnect":
            code = received.get("code", 1005)
            if code == TOO_BIG:  # refused and told by the proxy, see `sheen.serve.proxy`
                refused(self._socket.scope, message_too_large(self._limits.max_body_bytes))
            raise WebSocketDisconnect(code)
        return self._inbox.take(received)


async def refuse(socket: WebSocket, error: APIError) -> None:
    """Record an error, and send it to the client."""
    refused(socket.scope, error)
    await send_error(socket, error)
