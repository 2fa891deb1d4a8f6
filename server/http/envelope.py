"""What every answer is sent in: the request's id goes back with it, and its status is counted."""

import re
import uuid
from collections import Counter
from time import monotonic

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.access_log import log_access
from server.http.request_id import current_request_id

REQUEST_ID = "X-Request-Id"
ID_HEADER = REQUEST_ID.lower().encode()
"""As ASGI has it; nothing within names the request."""
COUNTED_METHODS = frozenset({"GET", "POST", "OPTIONS", "HEAD"})
OTHER_METHODS = "other"  # clients may make up any number of them
ACCEPTABLE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class Envelope:
    """ASGI: a client's own request id is echoed if it is short and plain, else one is made.

    statuses: answers so far by (method, status). logs_access: whether each has a line of its own.
    """

    def __init__(
        self, app: ASGIApp, statuses: Counter[tuple[str, int]], logs_access: bool = False
    ) -> None:
        self._app = app
        self._statuses = statuses
        self._logs_access = logs_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = _request_id(Headers(scope=scope))
        current_request_id.set(request_id)  # not reset: what fails beyond this has it as well
        method = scope["method"] if scope["method"] in COUNTED_METHODS else OTHER_METHODS

        status, began = None, monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._statuses[method, status] += 1
                message["headers"] = [*message.get("headers", ()), (ID_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            if self._logs_access:
                log_access(scope, status, began)


def _request_id(headers: Headers) -> str:
    given = headers.get(REQUEST_ID, "")
    return given if ACCEPTABLE.fullmatch(given) else uuid.uuid4().hex
