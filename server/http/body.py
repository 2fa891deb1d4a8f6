"""Reading a request's JSON: bounded, strict, and with an error that says where it is wrong.

To decode and check JSON takes as long as it has values, while nobody else is heard; how many there
are at most is seen from the characters that stand between them, in no time. So it is done when it
is the client's turn, once all of the body is there.
"""

import asyncio
import re
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope

from megainfer.sharing.budgets import MEMORY
from megainfer.sharing.shares import Shares
from server.http.beginnings import SMALL_BYTES, Beginnings
from server.http.client import current_client
from server.http.connection import ClientGone
from server.http.errors import ApiError, ErrorReport

BODY_SECONDS = 60.0
"""A request counts as running while its body comes: none may hold up a drain for ever."""
NOT_A_NUMBER = re.compile(rb"-?(NaN|Infinity)")


MOST_UNREAD_BYTES = 32 * 2**20
USUAL_BYTES = 2**16
"""Of a body, after which the reading of more is by turns."""
A_VALUE, A_CONTAINER = 40, 64
"""Bytes."""
OF_CONTAINER, OF_FIELD = 2, 3
"""What these cost, where a number or a string costs 1."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """size: bytes. values: numbers and strings. work: of containers and fields, by what they
    cost."""

    size: int
    values: int
    work: int

    def check_size(self, size: int) -> None:
        """Raises ApiError."""
        if size > self.size:
            message = f"the body is larger than the {self.size} bytes that this server reads"
            raise ApiError(ErrorReport(413, message, code="request_too_large"))

    def parsed_bytes(self, body: bytes) -> int:
        """What its values take of memory, about."""
        containers = body.count(b"{") + body.count(b"[")
        return len(body) + A_VALUE * body.count(b",") + A_CONTAINER * containers

    def check(self, body: bytes) -> None:
        """Raises ApiError where reading it would take long. Characters in strings count as well:
        there are seldom as many in them as may be."""
        values = body.count(b",")
        work = OF_CONTAINER * (body.count(b"{") + body.count(b"[")) + OF_FIELD * body.count(b":")
        if values > self.values or work > self.work:
            message = (
                f"the body has about {values} values, and objects, lists and fields that cost "
                f"{work}; at most {self.values}, and {self.work}, are read at once"
            )
            raise ApiError(ErrorReport(413, message, code="request_too_large"))


class JsonRequest(Request):
    """A request whose body must be JSON within the limits that its application has. What it takes
    of memory counts for its client until `forget`."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(scope, receive)
        state = self.app.state
        self._shares: Shares = state.shares
        self._limits: BodyLimits = state.body_limits
        self._beginnings: Beginnings = state.beginnings
        self._client = current_client.get()
        self._held = 0

    def forget(self) -> None:
        """Nobody needs the body any more."""
        if self._held:
            self._shares.give_back(self._client, {MEMORY: self._held})
            self._held = 0

    def held_loop(self, seconds: float) -> None:
        """What is done for it has taken so much CPU time at once."""
        self._beginnings.held(self._client, seconds)

    def _hold(self, size: int) -> None:
        self._shares.take(self._client, {MEMORY: size})
        self._held += size

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            _check_content_type(self.headers.get("content-type", ""))
            self._body = await self._read(int(self.headers.get("content-length", 0)))
        return self._body

    async def json(self) -> Any:
        body = await self.body()
        if len(body) > SMALL_BYTES:
            await self._beginnings.turn(self._client, len(body))
        self._limits.check(body)
        self._hold(self._limits.parsed_bytes(body))
        return parse_json(body)

    async def _read(self, length: int) -> bytes:
        """length: as announced. A body that is too large is read all the same, but not kept, since
        else its client would see a broken connection instead of the error."""
        body, size = bytearray(), 0
        if length > MOST_UNREAD_BYTES:
            self._limits.check_size(length)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in self.stream():
                    size += len(chunk)
                    if size > USUAL_BYTES:
                        await self._beginnings.taken_in(self._client, len(chunk))
                    if size <= self._limits.size:
                        self._hold(len(chunk))
                        body += chunk
                    elif size > MOST_UNREAD_BYTES:
                        break
                    else:
                        body.clear()
            self._limits.check_size(size)
        except ClientDisconnect:
            raise ClientGone from None
        except TimeoutError:
            message = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise ApiError(ErrorReport(408, message, code="request_timeout")) from None
        if not body:
            raise ApiError(ErrorReport(400, "the body is empty; send a JSON object"))
        return bytes(body)


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
