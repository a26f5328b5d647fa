"""Requests and responses of the routes of uploaded voices: OpenAI's fields and vLLM-Omni's.

Owns the shapes, and the parsing of an upload's `multipart/form-data` (RFC 7578) from a complete
body; any other body is refused with 400 or 415. What a voice is, and what else is refused:
`references`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse

from sheen.serve.access.middleware import check_origin
from sheen.serve.errors import APIError
from sheen.serve.schema.answers import (
    CreatedVoice,
    DeletedVoice,
    NamedVoice,
    NoSuchVoice,
    UploadedVoice,
    Voices,
)
from sheen.serve.voices.folder import StoredVoice

if TYPE_CHECKING:  # not imported where the application is built
    from sheen.serve.voices.references import References

MAX_PARTS = 16
"""Parts of a form, of which we read five. Reading them holds up every stream of the replica."""
MAX_HEAD_BYTES = 1024
"""Size of a part's headers, and of a form's Content-Type, which take time in proportion to its
square."""
HEADERS = BytesHeaderParser()  # of the old policy: those of newer ones take a hundred times as long


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
    declared = Message()
    declared["content-type"] = content_type if len(content_type) <= MAX_HEAD_BYTES else ""
    boundary = _param(declared, "content-type", "boundary")
    if declared.get_content_type() != "multipart/form-data" or not boundary:
        raise APIError(
            415,
            "body: send a form, with Content-Type: multipart/form-data and its boundary",
            code="unsupported_media_type",
        )
    edge = b"\r\n--" + boundary.encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(edge, MAX_PARTS + 1)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        if len(pieces) == MAX_PARTS + 2:
            raise APIError(400, f"body: a form of more than {MAX_PARTS} parts", code="form_invalid")
        raise APIError(
            400, "body: incomplete form: its last boundary is missing", code="form_invalid"
        )
    fields: dict[str, Part] = {}
    for piece in pieces[1:-1]:
        head, blank, content = piece.partition(b"\r\n")[2].partition(b"\r\n\r\n")
        if len(head) > MAX_HEAD_BYTES:
            raise APIError(
                400,
                f"body: a part of the form has more than {MAX_HEAD_BYTES} bytes of headers",
                code="form_invalid",
            )
        headers = HEADERS.parsebytes(head)
        name = _param(headers, "content-disposition", "name")
        if not blank or name is None:
            raise APIError(400, "body: a part of the form has no name", code="form_invalid")
        fields[name] = Part(content, headers.get_content_type())
    return fields


def _param(headers: Message, header: str, name: str) -> str | None:
    """A parameter of a header; None without one, and for one in the encoding that RFC 7578
    forbids."""
    try:
        value = headers.get_param(name, header=header)
    except TypeError:  # the library's, for one in parts of which only some are numbered
        return None
    return value if isinstance(value, str) else None


FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name", "audio_sample", "consent"],
                    "properties": {
                        "name": {
                            "type": "string",
                            "description": "its name for `voice`; an uploaded voice of the same "
                            "name is replaced",
                        },
                        "audio_sample": {
                            "type": "string",
                            "format": "binary",
                            "description": "1 to 30 s of speech, best 3 to 10: WAV, FLAC, MP3, Ogg "
                            "or anything else that ffmpeg reads",
                        },
                        "consent": {
                            "type": "string",
                            "description": "an id of yours for who allowed it; it is stored",
                        },
                        "ref_text": {
                            "type": "string",
                            "description": "its transcript; a server with an aligner "
                            "transcribes it if this is missing",
                        },
                        "speaker_description": {"type": "string"},
                    },
                }
            }
        },
    }
}
"""OpenAPI's description of an upload's body, which the framework does not read."""


def uploaded_voice(voice: StoredVoice) -> UploadedVoice:
    """A voice as clients see it."""
    return UploadedVoice(**{name: getattr(voice, name) for name in UploadedVoice.model_fields})


async def list_voices(references: "References", own: Iterable[str]) -> Voices:
    """The model's `own` voices, and those that were uploaded."""
    uploaded = await references.voices()
    voices = [NamedVoice(id=name, name=name) for name in own]
    voices += [NamedVoice(id=voice.id, name=voice.name) for voice in uploaded]
    return Voices(voices=voices, uploaded_voices=[uploaded_voice(voice) for voice in uploaded])


async def upload(references: "References", request: Request) -> CreatedVoice:
    """Store a voice. Raises APIError."""
    if references.folder is None:
        raise APIError(
            403,
            "this server keeps no voices; the operator can name a folder for them "
            "(args.voices_folder)",
            code="uploads_off",
        )
    # A page of another origin can send a form without permission (CORS).
    check_origin(request.scope)
    fields = read_form(request.headers.get("content-type", ""), await request.body())
    for name in ("name", "audio_sample", "consent"):
        if name not in fields:
            raise APIError(400, f"{name}: Field required", param=name, code="missing")

    def text(name: str) -> str:
        return fields.get(name, Part(b"", "text/plain")).text(name)

    sample = fields["audio_sample"]
    voice = await references.upload(
        text("name"),
        sample.content,
        sample.media_type,
        text("consent"),
        text("ref_text"),
        text("speaker_description") or None,
    )
    return CreatedVoice(
        id=voice.id, name=voice.name, created_at=voice.created_at, voice=uploaded_voice(voice)
    )


async def delete(references: "References", name: str) -> JSONResponse:
    """Delete a voice; 404 if there is none. In both cases the body is vLLM-Omni's: OpenAI's API has
    no such path, so that no client of it expects an error object here."""
    if (voice := await references.delete(name)) is None:
        missing = NoSuchVoice(error=f"no uploaded voice {name[:100]!r}")
        return JSONResponse(missing.model_dump(), 404)
    return JSONResponse(DeletedVoice(message=f"Voice {voice.name!r} deleted").model_dump())
