"""Every error in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`, or at the
addresses of Anthropic's API in its own."""

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from megainfer.errors import (
    MegaInferError,
    NodeDied,
    Overloaded,
    RequestError,
    RequestTimeout,
    cited,
)
from megainfer.frontend.request_limits import ContextTooLong
from server.http.anthropic_errors import error_body, speaks_at
from server.http.connection import CLIENT_CLOSED_REQUEST, ClientGone
from server.http.other_addresses import not_offered

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One error as a client sees it; `status` is its HTTP status where it can still be sent."""

    status: int
    message: str
    type: str = INVALID_REQUEST
    param: str | None = None
    code: str | None = None

    def fields(self) -> dict[str, str | None]:
        """OpenAI's, of its `error`."""
        return {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }

    def body(self) -> bytes:
        """In OpenAI's shape."""
        error = self.fields()
        return json.dumps({"error": error}).encode()  # ASCII: it may repeat any client's text

    def response(self, path: str = "/") -> Response:
        """In the shape of the API to which the address belongs."""
        headers = {"Retry-After": "1"} if self.status == 503 else None
        body = self._body_in_anthropics_shape() if speaks_at(path) else self.body()
        return Response(body, self.status, headers, media_type="application/json")

    def _body_in_anthropics_shape(self) -> bytes:
        return json.dumps(error_body(self.status, self.message)).encode()


class ApiError(HTTPException):
    """Raised in a route to answer with this report."""

    def __init__(self, report: ErrorReport) -> None:
        super().__init__(report.status, report.message)
        self.report = report


def report_of(error: Exception) -> ErrorReport:
    """What a client is told of an exception; an unforeseen one's text stays in the log."""
    if isinstance(error, ApiError):
        return error.report
    if isinstance(error, RequestError):
        code = "context_length_exceeded" if isinstance(error, ContextTooLong) else None
        return ErrorReport(400, str(error), param=error.param, code=code)
    if isinstance(error, NodeDied):
        return ErrorReport(503, str(error), SERVER_ERROR, code="engine_unavailable")
    if isinstance(error, Overloaded):
        return ErrorReport(503, str(error), SERVER_ERROR, code="overloaded")
    if isinstance(error, RequestTimeout):
        return ErrorReport(503, str(error), SERVER_ERROR, code="request_timeout")
    if isinstance(error, MegaInferError):
        return ErrorReport(500, str(error), SERVER_ERROR, code="engine_error")
    message = "an internal error occurred; the server's log has the details"
    return ErrorReport(500, message, SERVER_ERROR, code="internal_error")


def install_error_handlers(app: FastAPI) -> None:
    """Have the application answer every exception in the shape of the API that was asked."""
    for kind, handle in HANDLERS.items():
        app.add_exception_handler(kind, handle)


async def answer_to(request: Request, error: Exception) -> Response:
    """As an application with these handlers answers."""
    handle = next(handle for kind, handle in HANDLERS.items() if isinstance(error, kind))
    return await handle(request, error)


async def _on_hang_up(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def is_foreseen(error: Exception) -> bool:
    """Whether to answer it is all that is to be done; else uvicorn has to log it."""
    return any(isinstance(error, kind) for kind in HANDLERS if kind is not Exception)


async def _on_error(request: Request, error: Exception) -> Response:
    report = report_of(error)
    if isinstance(error, MegaInferError):  # others uvicorn logs, to whom they go on
        log_failure(error, report)
    return report.response(request.url.path)


def log_failure(error: Exception, report: ErrorReport) -> None:
    """Log what is the server's fault, an unforeseen exception with its traceback.

    Overload is counted in metrics: a line each would add to it.
    """
    if not isinstance(error, MegaInferError | HTTPException):
        log.error("a request failed", exc_info=error)
    elif report.status >= 500 and not isinstance(error, Overloaded):
        log.warning("a request failed: %s", report.message)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    url = f"{request.method:.20} {request.url.path:.200}"
    if isinstance(error, ApiError):
        report = error.report
    elif error.status_code == 404:
        report = _unknown(url, request.url.path)
    elif error.status_code == 405:
        message = f"this method isn't allowed here: {url}"
        report = ErrorReport(405, message, code="method_not_supported")
    else:
        report = ErrorReport(error.status_code, str(error.detail))
    response = report.response(request.url.path)
    response.headers.update(error.headers or {})
    return response


def _unknown(url: str, path: str) -> ErrorReport:
    if (what := not_offered(path)) is not None:
        message = f"MegaInfer doesn't offer {what}: {url}"
        return ErrorReport(404, message, code="not_offered")
    return ErrorReport(404, f"there is no such address: {url}", code="unknown_url")


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _invalid(list(error.errors())).response(request.url.path)


def _invalid(errors: list[dict[str, Any]]) -> ErrorReport:
    """The first wrong field, as deep as it is known.

    Of a field that may have one of several types pydantic reports what is wrong for each of them.
    """
    field = errors[0]["loc"][:2]
    of_field = [error for error in errors if error["loc"][:2] == field]
    param = _path(max(of_field, key=lambda error: len(error["loc"])))
    reasons = dict.fromkeys(_reason(error) for error in of_field if _path(error) == param)
    return ErrorReport(400, f"{param or 'the body'}: {' or '.join(reasons)}", param=param)


def _path(error: dict[str, Any]) -> str | None:
    """`messages[0].role`; alternatives of a union are left out."""
    location = error["loc"][1:]
    path = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in location
        if isinstance(part, int) or part.isidentifier()
    )
    for kind in (".str", ".list"):
        path = path.removesuffix(kind)
    return path.removeprefix(".") or None


def _reason(error: dict[str, Any]) -> str:
    text = str(error["msg"]).removeprefix("Value error, ")
    text = text[:1].lower() + text[1:]
    if error["type"] in ("missing", "value_error"):
        return text
    return f"{text}, not {cited(error['input'])}"


HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    MegaInferError: _on_error,
    ClientGone: _on_hang_up,
    StarletteHTTPException: _on_http_error,
    RequestValidationError: _on_invalid,
    Exception: _on_error,
}
"""None of the others is one of another of them; the last is what nobody foresaw."""
