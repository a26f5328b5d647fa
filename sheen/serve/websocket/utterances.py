"""Sheen's own messages on the WebSocket: `start`, `text`, `end` and `cancel`.

Owns the utterances of one client, one after another, each from its first text to `end` or `cancel`
and spoken while its text arrives. An error ends its utterance, and the rest of that text is
discarded. The connection: `conversation`.
"""

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from fastapi import WebSocket, WebSocketDisconnect

from sheen.serve.errors import APIError, send_error, unforeseen
from sheen.serve.rendering import WORD_EVENT, ending, rendered, with_word_times
from sheen.serve.request_log import SWITCHED, close_record, open_record
from sheen.serve.schema.messages import Cancel, ClientMessage, End, Start, Text
from sheen.serve.schema.requests import MAX_UTTERANCE_CHARACTERS, SpeechSettings

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.backend import Backend
    from sheen.serve.voices.references import NamedReference

logger = logging.getLogger(__name__)


def refuse_ssml(settings: SpeechSettings) -> None:
    """Raise APIError for SSML, which cannot be spoken before its document is complete."""
    if settings.ssml:
        raise APIError(
            400, "ssml: a WebSocket takes text alone; send the document by POST", param="ssml"
        )


class SocketUtterance:
    """One utterance being spoken: text in, frames of audio out, a message at the end."""

    def __init__(
        self,
        socket: WebSocket,
        backend: "Backend",
        settings: SpeechSettings,
        reference: "NamedReference | None",
    ) -> None:
        """Raises APIError when the utterance is not admitted."""
        self.complete = False
        """Whether all of its text has been received."""
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
        """Seconds without text in or audio out, while more text is expected."""
        waiting = self.sending and not self.complete
        return time.monotonic() - self._active if waiting else 0.0

    async def add(self, text: str) -> None:
        """Add text. Raises APIError when the utterance has become too long."""
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
        """End the text. Raises APIError when its end cannot be spoken."""
        self._utterance.close("text")
        self.complete = True

    async def stop(self) -> None:
        """Stop speaking. Nothing is sent after this returns."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self) -> None:
        try:
            data = rendered(self._utterance, self._record)
            async for item in with_word_times(data, self._utterance):
                if isinstance(item, bytes):
                    await self._socket.send_bytes(item)
                    self._active = time.monotonic()
                else:
                    await self._socket.send_json({"type": WORD_EVENT, "word_timestamps": item})
            await self._socket.send_json({"type": "speech.audio.done", **ending(self._record)})
        except WebSocketDisconnect:
            pass  # the task that receives gets it too
        except Exception as error:
            known = error if isinstance(error, APIError) else unforeseen(error)
            if known is not error:
                logger.exception("speech on a WebSocket failed")
            self.failed = True
            self._record.status = known.status
            self._record.blame(known)
            await send_error(self._socket, known)


class Utterances:
    """The settings of one client, and its utterances."""

    def __init__(self, socket: WebSocket, backend: "Backend") -> None:
        self._socket, self._backend = socket, backend
        self._settings: SpeechSettings | None = None
        self._current: SocketUtterance | None = None
        self._discarding = False  # after an error, the rest of that text

    @property
    def started(self) -> bool:
        """Whether the client has sent its settings."""
        return self._settings is not None

    @property
    def speaking(self) -> bool:
        return self._sending is not None

    @property
    def idle_s(self) -> float:
        """Seconds as in `SocketUtterance.idle_s`; 0 while nothing is being spoken."""
        return 0.0 if self._sending is None else self._sending.idle_s

    async def take(self, message: ClientMessage) -> int | None:
        """Handle a message. Raises APIError for an invalid one."""
        if isinstance(message, Start):
            self._start(message)
        elif isinstance(message, Text):
            await self._text(message.text)
        elif isinstance(message, End):
            await self._end()
        elif isinstance(message, Cancel):
            await self.stop()
            self._discarding = False
            await self._socket.send_json({"type": "speech.audio.cancelled"})
        else:
            raise APIError(
                400, f"type: {message.type} does not go with start, text and end", param="type"
            )
        return None

    async def fail(self) -> None:
        """Stop and discard an incomplete utterance after an error: further text would be spoken
        with a gap, and end as if it were complete."""
        if self._sending is not None and not self._sending.complete:
            await self.stop()
            self._discarding = True

    async def stop(self) -> None:
        """Stop what is being spoken."""
        if self._current is not None:
            await self._current.stop()
            self._current = None

    @property
    def _sending(self) -> SocketUtterance | None:
        return self._current if self._current is not None and self._current.sending else None

    def _start(self, settings: SpeechSettings) -> None:
        if self._sending is not None:
            raise APIError(
                400, "type: start while something is spoken; end or cancel it first", param="type"
            )
        refuse_ssml(settings)
        self._settings, self._discarding = settings, False

    async def _text(self, text: str) -> None:
        if self._settings is None:
            raise APIError(400, "type: text before start; send start first", param="type")
        if self._discarding or (
            self._current and self._current.failed and not self._current.complete
        ):
            self._discarding = True
            return
        speaking = self._sending
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
            self._discarding, self._current = False, None  # the client has received the error
            return
        if self._sending is None or self._sending.complete:
            raise APIError(400, "type: end without text before it", param="type")
        try:
            self._sending.end()
        except APIError:
            await self.stop()  # here and not by `fail`: no text follows to be discarded
            raise
