"""The HTTP contract: the speech request, and every error in the shape OpenAI clients read.

Owns validation and status codes. Knows nothing about models or Ray.
"""

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from sheen.core.sampling import Sampling

MAX_INPUT_CHARACTERS = 4096

MEDIA_TYPES = {"wav": "audio/wav", "pcm": "audio/pcm"}


class VoiceId(BaseModel):
    id: str


class SpeechRequest(BaseModel):
    """Body of `POST /v1/audio/speech`. Unknown fields are ignored: clients send many."""

    model: Annotated[str, Field(description="any name; this server has one model")]
    input: Annotated[
        str,
        Field(min_length=1, max_length=MAX_INPUT_CHARACTERS, description="the text to speak"),
    ]
    voice: Annotated[str | VoiceId, Field(description="a name from /v1/audio/voices")]
    response_format: Annotated[
        Literal["wav", "pcm"],
        Field(description="pcm: 16-bit little-endian mono at the rate in x-sample-rate"),
    ] = "wav"
    stream_format: Annotated[Literal["audio"], Field(description="chunked audio bytes")] = "audio"
    speed: Annotated[float, Field(ge=1.0, le=1.0, description="only 1.0")] = 1.0
    temperature: Annotated[float, Field(ge=0.0, le=5.0, description="0 is greedy")] = (
        Sampling.temperature
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Sampling.top_p
    top_k: Annotated[int, Field(ge=0, description="0 is off")] = Sampling.top_k
    repetition_penalty: Annotated[
        float, Field(ge=0.5, le=5.0, description="over a short window of the audio; 1 is off")
    ] = 1.0
    seed: Annotated[
        int | None, Field(ge=0, lt=2**63, description="the same seed gives the same audio")
    ] = None

    @property
    def voice_name(self) -> str:
        return self.voice if isinstance(self.voice, str) else self.voice.id


class APIError(Exception):
    """An error to answer with, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def error_response(error: APIError) -> JSONResponse:
    kind = "invalid_request_error" if error.status < 429 else "server_error"
    if error.status == 429:
        kind = "rate_limit_error"
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
    body = {
        "message": str(error),
        "type": kind,
        "param": error.param,
        "code": error.code,
    }
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


def install_error_handlers(app: FastAPI) -> None:
    """Give the framework's own errors the same shape as ours."""

    async def ours(_: Request, error: APIError) -> JSONResponse:
        return error_response(error)

    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problem: dict[str, Any] = error.errors()[0]
        # The first part is "body"; a number there is a position in broken JSON, not a field.
        param = next((part for part in problem["loc"][1:2] if isinstance(part, str)), None)
        message = f"{param or 'body'}: {problem['msg']}"
        return error_response(APIError(400, message, param=param, code=problem["type"]))

    async def framework(_: Request, error: HTTPException) -> JSONResponse:
        response = error_response(APIError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})  # a 405 must name what is allowed
        return response

    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        # The framework logs the traceback; the client gets no inside.
        return error_response(APIError(500, f"internal error ({type(error).__name__})"))

    app.add_exception_handler(APIError, ours)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, framework)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, unforeseen)
