"""Reading a request's JSON: bounded, strict, and with an error that says where it is wrong."""

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from server.http.errors import ApiError, ErrorReport

MAX_BODY_BYTES = 32 * 2**20
BODY_SECONDS = 60.0
"""A request counts as running while its body comes: none may hold up a drain for ever."""
NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")


class JsonRequest(Request):
    """A request whose body must be JSON of at most MAX_BODY_BYTES."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            _check_content_type(self.headers.get("content-type", ""))
            _check_size(int(self.headers.get("content-length", 0)))
            self._body = await self._read()
        return self._body

    async def json(self) -> Any:
        return parse_json(await self.body())

    async def _read(self) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.stream():
                    body += chunk
                    _check_size(len(body))
        except TimeoutError:
            message = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise ApiError(ErrorReport(408, message, code="request_timeout")) from None
        if not body:
            raise ApiError(ErrorReport(400, "the body is empty; send a JSON object"))
        return bytes(body)


class JsonRoute(APIRoute):
    """A route that reads its body through JsonRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return handle_json


def parse_json(body: bytes) -> Any:
    """The value in a JSON text; NaN, Infinity and lone surrogates aren't JSON. Raises ApiError."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"the body isn't valid JSON: {error}"
        if (wrong := _non_finite(str(error), body)) is not None:
            message = f"{message}; {wrong} isn't a number in JSON, send a finite one"
        raise ApiError(ErrorReport(400, message, code="invalid_json")) from error


def _non_finite(error: str, body: bytes) -> str | None:
    position = re.search(r"\(byte (\d+)\)", error)
    if position is None:
        return None
    at = int(position[1])
    found = NOT_A_NUMBER.match(body, at) or NOT_A_NUMBER.match(body, max(at - 1, 0))
    return found[0].decode() if found else None


def _check_content_type(value: str) -> None:
    # Not for tidiness: a web page may send other types to a local server without being asked.
    kind = value.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        message = f"send the body with Content-Type: application/json, not {value!r:.80}"
        raise ApiError(ErrorReport(415, message, code="unsupported_media_type"))


def _check_size(size: int) -> None:
    if size > MAX_BODY_BYTES:
        message = f"the body is larger than the {MAX_BODY_BYTES} bytes that this server reads"
        raise ApiError(ErrorReport(413, message, code="request_too_large"))
