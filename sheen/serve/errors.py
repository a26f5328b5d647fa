"""Every error in the shape that OpenAI's clients read, the framework's own included.

Owns status codes, the error's body, and what of a failure a client may learn. Knows nothing about
models or Ray.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

ERROR_KEY = "sheen.error"
"""Where a request's scope holds the error that it was answered with."""


class ErrorFields(BaseModel):
    """All four are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """What a client gets instead of what it asked for."""

    error: ErrorFields


class APIError(Exception):
    """An error to answer with. `retry_after_s` becomes the Retry-After header of 429 and 503."""

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

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 429 else "server_error"
        if self.status == 401:
            kind = "authentication_error"
        if self.status == 429:
            kind = "rate_limit_error"
        fields = ErrorFields(message=str(self), type=kind, param=self.param, code=self.code)
        return ErrorBody(error=fields).model_dump()


class Refused(HTTPException):
    """An APIError for a body that is refused while the framework reads it: of every other exception
    it would make a 400. The connection is closed, because the rest of the body may never come."""

    def __init__(self, error: APIError) -> None:
        super().__init__(error.status, str(error), {"Connection": "close"})
        self.error = error


def error_response(error: APIError) -> JSONResponse:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, error.retry_after_s))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def describe_invalid(error: RequestValidationError) -> APIError:
    """The first thing that is wrong with a request, as a 400 that names the field."""
    problem: dict[str, Any] = error.errors()[0]
    # The first part is "body"; a number there is a position in broken JSON, not a field.
    param = next((part for part in problem["loc"][1:2] if isinstance(part, str)), None)
    message = f"{param or 'body'}: {problem['msg']}"
    return APIError(400, message, param=param, code=problem["type"])


def unforeseen(error: Exception) -> APIError:
    """What is said of a failure that nobody foresaw: the log has the rest, the client no inside."""
    return APIError(500, f"internal error ({type(error).__name__})")


def install_error_handlers(app: FastAPI) -> None:
    """Give the framework's own errors the same shape as ours."""

    def answer(request: Request, error: APIError) -> JSONResponse:
        request.scope[ERROR_KEY] = error
        return error_response(error)

    async def ours(request: Request, error: APIError) -> JSONResponse:
        return answer(request, error)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, describe_invalid(error))

    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        known = APIError(error.status_code, str(error.detail))
        response = answer(request, error.error if isinstance(error, Refused) else known)
        response.headers.update(error.headers or {})  # a 405 must name what is allowed
        return response

    async def anything(request: Request, error: Exception) -> JSONResponse:
        return answer(request, unforeseen(error))  # the framework logs the traceback

    app.add_exception_handler(APIError, ours)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, framework)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, anything)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: these statuses, each with an error's body."""
    meanings = {
        400: "the request is wrong; `param` names the field",
        401: "no valid key; send `Authorization: Bearer KEY`",
        404: "there is no such thing",
        408: "the body did not come in time",
        413: "the body is too large",
        415: "the body is not declared as JSON; send `Content-Type: application/json`",
        429: "as many requests as are allowed are under way; see Retry-After",
        500: "synthesis failed",
        503: "the server is stopping, or the audio did not begin in time; see Retry-After",
    }
    return {status: {"model": ErrorBody, "description": meanings[status]} for status in statuses}
