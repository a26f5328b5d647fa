"""How much a client may ask for and how long it may take, at every door.

Owns the table: `Limits` are fields of `args`, `Limits.body` has a row per route. And what keeps it:
the clock of a body, the size and pace of a WebSocket's messages. Each refusal has a code, by which
it is counted. How many requests speak at a time is `sheen.serve.access.admission`'s.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, NamedTuple

from pydantic import BaseModel, Field
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from sheen.serve.errors import APIError, Refused

KIB = 1024
MAX_UTTERANCE_CHARACTERS = 32_768
"""What a language model writes in one answer: the text of one utterance on a WebSocket."""
IDLE_S = 60.0
"""A client that is in the middle of a text and sends no more for so long is taken for gone."""
SILENT_S = 600.0
"""A WebSocket on which nobody has spoken for so long is closed."""
RESERVE = 64
"""Places of a replica beyond all that can be held: for what is answered at once, such as /health,
and every refusal."""


class BodyLimit(NamedTuple):
    """Of one request's body."""

    size: int
    """Bytes."""
    seconds: float
    """From the request's arrival to the body's last byte."""


class Limits(BaseModel):
    """The table, with its defaults."""

    max_body_bytes: Annotated[
        int, Field(ge=1024, description="a larger body of a request gets 413")
    ] = 256 * KIB  # the longest text and instructions, with every character escaped, take 100 kB
    body_timeout_s: Annotated[
        float,
        Field(gt=0.0, description="a body that is not whole by then, however it comes, gets 408"),
    ] = 10.0
    max_bodies: Annotated[
        int,
        Field(
            ge=1,
            description="bodies of requests on their way at a time; with one more, the oldest of "
            "them gets 408",
        ),
    ] = 128
    max_message_bytes: Annotated[
        int,
        Field(
            ge=1024,
            description="a WebSocket with a larger message, decompressed, is closed with 1009",
        ),
    ] = 256 * KIB
    max_messages_per_s: Annotated[
        int,
        Field(ge=1, description="a WebSocket with more messages in a second is closed with 1008"),
    ] = 50
    start_timeout_s: Annotated[
        float,
        Field(gt=0.0, description="a WebSocket without `start` by then is closed with 1008"),
    ] = 10.0

    def body(self, path: str) -> BodyLimit:
        """The row of a route, `path` within the application. None has one of its own yet."""
        rows: dict[str, BodyLimit] = {}
        return rows.get(path, BodyLimit(self.max_body_bytes, self.body_timeout_s))


def too_large(limit: BodyLimit) -> APIError:
    return APIError(413, f"the body has more than {limit.size} bytes", code="body_too_large")


def declared(headers: Headers) -> int:
    """The body's length as its request gives it; 0 for none."""
    length = headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


class Body:
    """One request's body on its way: use it as `receive`. Raises Refused."""

    def __init__(self, receive: Receive, limit: BodyLimit, bodies: "Bodies") -> None:
        self._receive, self._limit, self._bodies = receive, limit, bodies
        self._deadline = asyncio.get_running_loop().time() + limit.seconds
        self._begun = self._whole = self._expired = False
        self._seen = 0
        self._waiting: asyncio.Timeout | None = None

    async def __call__(self) -> Message:
        if self._whole:  # what still comes is that the client leaves
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
            reason = f"the body was not whole after {self._limit.seconds:g} s"
            if self._expired:
                reason = "the body was the oldest of those on their way, and its place was needed"
            raise Refused(APIError(408, reason, code="body_timeout")) from error
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
        """Its time is over now."""
        self._expired = True
        if self._waiting is not None:
            self._waiting.reschedule(asyncio.get_running_loop().time())


class Bodies:
    """All bodies on their way to this process. One event loop's."""

    def __init__(self, most: int) -> None:
        self._coming: dict[Body, None] = {}  # in the order in which they came
        self.most = most

    def enter(self, body: Body) -> None:
        """Beyond `most`, the oldest goes: most bodies are whole at once, those that are not wait
        for a reason, and must keep nobody out."""
        self._coming[body] = None
        while len(self._coming) > self.most:
            oldest = next(iter(self._coming))
            self.leave(oldest)
            oldest.expire()

    def leave(self, body: Body) -> None:
        self._coming.pop(body, None)


class Pace:
    """Whether messages keep to `per_second`, of which so many may come at once."""

    def __init__(self, per_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._clock = per_second, clock
        self._left, self._at = float(per_second), clock()

    def keeps(self) -> bool:
        """Call it once for each message."""
        now = self._clock()
        more = (now - self._at) * self._per_second
        self._left, self._at = min(self._left + more, float(self._per_second)) - 1.0, now
        return self._left >= 0.0
