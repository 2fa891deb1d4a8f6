"""Spans of all nodes while they come in, a message at a time."""

import asyncio
from dataclasses import dataclass, field

from megainfer.instruments.stage_clock import Span
from megainfer.messages.from_child import Spans


@dataclass
class SpanPieces:
    """unfinished: processes that have more to send. whole: is set when none has."""

    unfinished: int
    whole: asyncio.Future[None]
    spans: dict[str, list[Span]] = field(default_factory=dict)

    def hear(self, message: Spans) -> None:
        """Take one message in; none may follow the last."""
        self.spans.setdefault(message.node, []).extend(message.spans)
        self.unfinished -= message.last
        if not self.unfinished:
            self.whole.set_result(None)
