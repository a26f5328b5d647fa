"""A client's messages on a WebSocket, one after another: small enough, slow enough, and ours.

Owns what is taken for a message. What a message holds is `sheen.serve.schema`'s, what it does
`sheen.serve.websocket`'s.
"""

import json
import re
from typing import Any

from pydantic import ValidationError
from starlette.types import Message

from sheen.serve.access.limits import Limits, Pace
from sheen.serve.errors import APIError
from sheen.serve.schema import MESSAGE, Cancel, End, Start, Text

POLICY_VIOLATION, TOO_BIG = 1008, 1009
"""Close codes of WebSockets (RFC 6455, 7.4.1)."""

_HALF = re.compile("[\ud800-\udfff]")


class Closing(APIError):
    """An error after which the WebSocket is closed."""

    def __init__(self, close_code: int, status: int, message: str, code: str | None) -> None:
        super().__init__(status, message, code=code)
        self.close_code = close_code


class Inbox:
    """Of one WebSocket."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pace = Pace(limits.max_messages_per_s)
        self._half = ""
        """The first half of a surrogate pair whose second half the next text may begin with."""

    def take(self, received: Message) -> Start | Text | End | Cancel:
        """A message as it was received. Closing for one that breaks a limit, APIError for one that
        is none of ours."""
        text, binary = received.get("text"), received.get("bytes")
        if self._size(text or binary or "") > self._limits.max_message_bytes:
            most = self._limits.max_message_bytes
            raise Closing(TOO_BIG, 413, f"a message of more than {most} bytes", "message_too_large")
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
        if not isinstance(message, Text):
            self._half = ""
        return message

    def _size(self, data: str | bytes) -> int:
        """Bytes; of a text that is surely too long, its characters."""
        if isinstance(data, bytes) or len(data) > self._limits.max_message_bytes:
            return len(data)
        return len(data.encode())

    def _parsed(self, text: str) -> Start | Text | End | Cancel:
        half, self._half = self._half, ""
        try:
            message = MESSAGE.validate_json(text)
        except ValidationError as error:
            fields = _of_halves(text)
            if fields is None:
                raise _invalid(error) from error
            fields["text"], self._half = _joined(half + fields["text"])
            try:
                return MESSAGE.validate_python(fields)
            except ValidationError as another:
                raise _invalid(another) from another
        if half and isinstance(message, Text):
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


def _of_halves(text: str) -> dict[str, Any] | None:
    """The fields of a `text` message that holds half a surrogate pair, which pydantic takes for no
    JSON, and JavaScript writes where a string was sliced. None if that is not what is wrong."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        return None
    return fields if _HALF.search(fields["text"]) else None


def _joined(text: str) -> tuple[str, str]:
    """A text whose pairs are characters, what has no other half is replaced; and the half at its
    end, whose other half may follow."""
    rest = text[-1] if "\ud800" <= text[-1:] <= "\udbff" else ""
    units = text[: len(text) - len(rest)].encode("utf-16-le", "surrogatepass")
    return units.decode("utf-16-le", "replace"), rest
