"""Limits of request bodies and WebSocket messages, the same on every route.

Owns the deadline of a body, and whether a WebSocket message is accepted: by its size, its rate and
its type. Each refusal has a code, by which it is counted. The limits are fields of `args`
(`sheen.serve.config`). Fields of messages: `sheen.serve.schema`; their handling:
`sheen.serve.websocket`; the number of concurrent requests: `sheen.serve.access.admission`.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from sheen.serve.config import BodyLimit, ClientLimits
from sheen.serve.errors import APIError, Refused, body_late, message_too_large
from sheen.serve.schema.messages import MESSAGE, ClientMessage, InputText, Text

NORMAL, POLICY_VIOLATION, TOO_BIG = 1000, 1008, 1009
"""Close codes of WebSockets (RFC 6455, 7.4.1)."""
IDLE_S = 60.0
"""Seconds without text in the middle of an utterance, after which a client is assumed to be
gone."""
SILENT_S = 600.0
"""Seconds without speech after which a WebSocket is closed."""
RESERVE = 64
"""Places of a replica beyond all that can be held, for responses that return at once: /health and
every refusal."""


def too_large(limit: BodyLimit) -> APIError:
    return APIError(413, f"the body has more than {limit.size} bytes", code="body_too_large")


def declared(headers: Headers) -> int:
    """The Content-Length of a request; 0 where it has none."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


class Body:
    """One request's body as it arrives; use it as `receive`. Raises Refused."""

    def __init__(self, receive: Receive, limit: BodyLimit, bodies: "Bodies") -> None:
        self._receive, self._limit, self._bodies = receive, limit, bodies
        self._deadline = asyncio.get_running_loop().time() + limit.seconds
        self._begun = self._whole = self._expired = False
        self._seen = 0
        self._waiting: asyncio.Timeout | None = None

    async def __call__(self) -> Message:
        if self._whole:  # only the disconnect can follow
            return await self._receive()
        if not self._begun:
            self._begun = True
            self._bodies.enter(self)
        try:
            if self._expired:
                raise TimeoutError
            async with asyncio.timeout_at(self._deadline) as self._waiting:
                message = await self._receive()
        except TimeoutError as error:
            late = body_late(self._limit.seconds)
            if self._expired:
                reason = "the body was the oldest being received, and its place was needed"
                late = APIError(408, reason, code=late.code)
            raise Refused(late) from error
        finally:
            self._waiting = None
        self._seen += len(message.get("body", b""))
        if self._seen > self._limit.size:
            raise Refused(too_large(self._limit))
        if not message.get("more_body", False):
            self._whole = True
            self._bodies.leave(self)
        return message

    def expire(self) -> None:
        """Time the body out now."""
        self._expired = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())


class Bodies:
    """All bodies that this process is receiving. For one event loop."""

    def __init__(self, most: int) -> None:
        self._coming: dict[Body, None] = {}  # in the order in which they came
        self.most = most

    def enter(self, body: Body) -> None:
        """Add a body. Beyond `most` the oldest times out: most bodies arrive at once, and one that
        stalls must not keep others out."""
        self._coming[body] = None
        while len(self._coming) > self.most:
            oldest = next(iter(self._coming))
            self.leave(oldest)
            oldest.expire()

    def leave(self, body: Body) -> None:
        self._coming.pop(body, None)


class Pace:
    """Whether messages keep to `per_second`, with bursts of as many."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._left, self._at = float(per_second), clock()

    def keeps(self) -> bool:
        """Whether one more message is within the rate. Call it once for each message."""
        now = self._clock()
        more = (now - self._at) * self._per_second
        self._left, self._at = min(self._left + more, float(self._per_second)) - 1.0, now
        return self._left >= 0.0


_HALF = re.compile("[\ud800-\udfff]")


class Closing(APIError):
    """An error after which the WebSocket is closed."""

    def __init__(self, close_code: int, status: int, message: str, code: str | None) -> None:
        super().__init__(status, message, code=code)
        self.close_code = close_code


class Inbox:
    """Checks and parses the messages of one WebSocket."""

    def __init__(self, limits: ClientLimits) -> None:
        self._limits = limits
        self._pace = Pace(limits.max_messages_per_s)
        self._half = ""
        """High surrogate at the end of the last text; the next text may begin with the low one."""

    def take(self, received: Message) -> ClientMessage:
        """Parse a received message. Raises Closing for one that breaks a limit, APIError for one
        that is invalid."""
        text, binary = received.get("text"), received.get("bytes")
        if self._size(text or binary or "") > self._limits.max_body_bytes:
            large = message_too_large(self._limits.max_body_bytes)
            raise Closing(TOO_BIG, large.status, str(large), large.code)
        if not self._pace.keeps():
            most = self._limits.max_messages_per_s
            raise Closing(
                POLICY_VIOLATION, 429, f"more than {most} messages a second", "too_many_messages"
            )
        if text is None:
            raise APIError(
                400, "a binary message; send JSON in text messages", code="binary_message"
            )
        message = self._parsed(text)
        if not isinstance(message, Text | InputText):
            self._half = ""
        return message

    def _size(self, data: str | bytes) -> int:
        """Size in bytes; for a text that is certainly too long, its number of characters."""
        if isinstance(data, bytes) or len(data) > self._limits.max_body_bytes:
            return len(data)
        return len(data.encode())

    def _parsed(self, text: str) -> ClientMessage:
        half, self._half = self._half, ""
        try:
            message = MESSAGE.validate_json(text)
        except ValidationError as error:
            fields = _fields_with_surrogates(text)
            if fields is None:
                raise _invalid(error) from error
            fields["text"], self._half = _joined(half + fields["text"])
            try:
                return MESSAGE.validate_python(fields)
            except ValidationError as another:
                raise _invalid(another) from another
        if half and isinstance(message, Text | InputText):
            if message.text:
                message.text = "\N{REPLACEMENT CHARACTER}" + message.text
            else:
                self._half = half
        return message


def _invalid(error: ValidationError) -> APIError:
    problem = error.errors()[0]
    # The first part is the message's type, the second the field.
    param = next((str(part) for part in problem["loc"][1:2]), None)
    return APIError(
        400, f"{param or 'message'}: {problem['msg']}", param=param, code=problem["type"]
    )


def _fields_with_surrogates(text: str) -> dict[str, Any] | None:
    """The fields of a `text` message with an unpaired surrogate, which JavaScript writes where a
    string was sliced, and which pydantic rejects as JSON. None for any other fault."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        return None
    return fields if _HALF.search(fields["text"]) else None


def _joined(text: str) -> tuple[str, str]:
    """Join surrogate pairs into characters and replace unpaired ones. Returns the text, and the
    high surrogate at its end, whose other half may follow."""
    rest = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
    units = text[: len(text) - len(rest)].encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace"), rest
