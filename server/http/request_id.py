"""Which request is being answered: its X-Request-Id, in every log line that its failure writes."""

import logging
from contextvars import ContextVar

current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
"""Of the request in whose task this is asked; uvicorn runs each in a task of its own."""


class NamesRequest(logging.Filter):
    """Has a handler's lines end with the id of the request that they are about."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = current_request_id.get()
        if request_id is not None and not hasattr(record, "request_id"):
            record.request_id = request_id
            record.msg = f"{record.getMessage()} [request {request_id}]"
            record.args = None
        return True


def name_requests(logger: logging.Logger) -> None:
    """Of all that is logged through this logger's handlers from now on."""
    for handler in logger.handlers:
        handler.addFilter(NamesRequest())
