"""Forms: parsing of `multipart/form-data` (RFC 7578) from a complete body.

Owns the format alone. Refuses any other body, with 400 or 415.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.parser import BytesHeaderParser
from email.policy import HTTP

from sheen.serve.errors import APIError

HEADERS = BytesHeaderParser(policy=HTTP)


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    content: bytes
    media_type: str
    """Declared media type; text/plain where there is none."""

    def text(self, name: str) -> str:
        try:
            return self.content.decode()
        except UnicodeDecodeError as error:
            raise APIError(400, f"{name}: it is not UTF-8", param=name) from error


def read_form(content_type: str, body: bytes) -> Mapping[str, Part]:
    """The fields of a form by name; the last of several with one name. Raises APIError."""
    declared = EmailMessage(policy=HTTP)
    declared["content-type"] = content_type or "none/none"
    boundary = declared.get_boundary()
    if declared.get_content_type() != "multipart/form-data" or not boundary:
        raise APIError(
            415,
            "body: send a form, with Content-Type: multipart/form-data and its boundary",
            code="unsupported_media_type",
        )
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise APIError(
            400, "body: incomplete form: its last boundary is missing", code="form_invalid"
        )
    fields: dict[str, Part] = {}
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n")[2].partition(b"\r\n\r\n")
        headers = HEADERS.parsebytes(head)
        name = headers.get_param("name", header="content-disposition")
        if not blank or not isinstance(name, str):
            raise APIError(400, "body: a part of the form has no name", code="form_invalid")
        fields[name] = Part(content, headers.get_content_type())
    return fields
