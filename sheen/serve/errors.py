"""Errors in the format that OpenAI's clients read, including the framework's own.

Owns status codes, the error's body, and which details of a failure a client may see. Knows nothing
about models or Ray.
"""

import re
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

ERROR_KEY = "sheen.error"
"""Key of a request's scope that holds the error of its response."""


class ErrorFields(BaseModel):
    """OpenAI's fields of an error, all of them always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of an error response."""

    error: ErrorFields


class APIError(Exception):
    """An error for the client. `retry_after_s` becomes the Retry-After header of 429 and 503."""

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
    """An APIError for a body that is refused while the framework reads it: it would turn any other
    exception into a 400. The connection is closed, because the rest of the body may never come."""

    def __init__(self, error: APIError) -> None:
        super().__init__(error.status, str(error), {"Connection": "close"})
        self.error = error


def remember(scope: Scope, error: APIError) -> None:
    """Store the error of a response in its request's scope. Without its traceback: those frames
    hold the scope and the client's data, which would stay until garbage is collected."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    scope[ERROR_KEY] = error


def error_response(error: APIError) -> JSONResponse:
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, error.retry_after_s))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.body(), status_code=error.status, headers=headers)


def body_late(seconds: float) -> APIError:
    """For a body that is incomplete after so many seconds."""
    return APIError(408, f"the body was incomplete after {seconds:g} s", code="body_timeout")


def message_too_large(most: int) -> APIError:
    """For a WebSocket message of more than so many bytes."""
    return APIError(413, f"a message of more than {most} bytes", code="message_too_large")


def error_message(error: APIError) -> dict[str, Any]:
    """An error as a message on a WebSocket."""
    return {"type": "error", "message": str(error), **error.body()}


async def send_error(socket: WebSocket, error: APIError) -> None:
    """Send an error to the client of a WebSocket, if it is still connected."""
    with suppress(WebSocketDisconnect, RuntimeError):  # RuntimeError: already closed
        await socket.send_json(error_message(error))


def describe_invalid(error: RequestValidationError, headers: Headers) -> APIError:
    """The first fault of a request, as a 400 that names the field; a 415 for a body that was not
    read, since it is not declared as JSON."""
    problem: dict[str, Any] = error.errors()[0]
    # The first part is "body"; a number there is a position in broken JSON, not a field.
    param = next((part for part in problem["loc"][1:2] if isinstance(part, str)), None)
    if param is None and (undeclared := not_declared_json(headers)):
        return undeclared
    message = f"{param or 'body'}: {_place(problem['loc'])}{problem['msg']}"
    if problem["type"] == "json_invalid":
        message = f"body: not JSON: {problem['ctx']['error']}, at character {problem['loc'][1]}"
    return APIError(400, message, param=param, code=problem["type"])


def _place(loc: tuple[str | int, ...]) -> str:
    """The place within a list, such as `[0].text: `; empty for a fault of a field itself."""
    if not any(isinstance(part, int) for part in loc[2:]):
        return ""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc[2:])
    return f"{''.join(parts)}: "


def not_declared_json(headers: Headers) -> APIError | None:
    """A 415 if the headers do not declare a body as JSON, else None. A page of another origin can
    send other types without permission (CORS): reading them as JSON would let it in."""
    coding = headers.get("content-encoding", "identity").lower()
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if coding != "identity":
        problem = f"without Content-Encoding; this one has {coding[:100]}"
    elif not re.fullmatch(r"application/(json|[^/]+\+json)", kind):
        declared = f"is declared as {kind[:100]}" if kind else "has no Content-Type"
        problem = f"with Content-Type: application/json; this one {declared}"
    else:
        return None
    return APIError(415, f"body: send JSON, {problem}", code="unsupported_media_type")


def describe_unreadable(error: HTTPException, headers: Headers) -> APIError:
    """The framework's own error; for a body that it could not read, with the reason."""
    cause = error.__cause__
    if error.status_code != HTTPStatus.BAD_REQUEST or cause is None:
        return APIError(error.status_code, str(error.detail))
    if undeclared := not_declared_json(headers):
        return undeclared
    problem = "it cannot be read"
    if isinstance(cause, UnicodeDecodeError):
        problem = f"byte {cause.object[cause.start]:#04x} at {cause.start} is not UTF-8"
    elif isinstance(cause, RecursionError):
        problem = "it is nested too deeply"
    elif isinstance(cause, ValueError):  # not a JSONDecodeError: int() bounds the digits
        problem = "a number has too many digits"
    return APIError(400, f"body: not JSON: {problem}", code="json_invalid")


def unforeseen(error: Exception) -> APIError:
    """A 500 for an unexpected failure: the log has the details, the client learns only the type."""
    return APIError(500, f"internal error ({type(error).__name__})")


def allowed_methods(request: Request) -> list[str]:
    """Methods of a request's path. The framework names those of one route, and without HEAD."""
    methods = []
    for method in ("GET", "POST", "DELETE"):
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            methods += ["GET", "HEAD"] if method == "GET" else [method]
    return methods


def install_error_handlers(app: FastAPI) -> None:
    """Return the framework's own errors in the same format as ours."""

    def answer(request: Request, error: APIError) -> JSONResponse:
        remember(request.scope, error)
        return error_response(error)

    async def ours(request: Request, error: APIError) -> JSONResponse:
        return answer(request, error)

    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(request, describe_invalid(error, request.headers))

    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error, Refused):
            response = answer(request, error.error)
        else:
            response = answer(request, describe_unreadable(error, request.headers))
        response.headers.update(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            response.headers["Allow"] = ", ".join(allowed_methods(request))
        return response

    async def anything(request: Request, error: Exception) -> JSONResponse:
        return answer(request, unforeseen(error))  # the framework logs the traceback

    app.add_exception_handler(APIError, ours)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, framework)  # type: ignore[arg-type]
    app.add_exception_handler(Exception, anything)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: these statuses, each with an error as its body."""
    meanings = {
        400: "the request is invalid; `param` names the field",
        401: "no valid key; send `Authorization: Bearer KEY`",
        403: "the server does not allow this",
        404: "not found",
        408: "the body did not come in time",
        413: "the body is too large",
        415: "the body is not declared as JSON; send `Content-Type: application/json`",
        429: "too many requests at a time; see Retry-After",
        500: "synthesis failed",
        503: "the server is stopping, or the audio did not begin in time; see Retry-After",
    }
    return {status: {"model": ErrorBody, "description": meanings[status]} for status in statuses}
