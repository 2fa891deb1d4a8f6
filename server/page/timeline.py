"""The nodes' latest spans, kept only while somebody looks, and gathered at most once a second."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any

import msgspec

from megainfer.errors import NodeDied
from megainfer.instruments.stage_clock import Span
from megainfer.instruments.trace_events import lanes_of
from server.operate.traces import Tracer

LOOKED_AWAY_SECONDS = 5.0
"""After so long without a look nodes keep no more spans."""
BETWEEN_GLANCES_SECONDS = 0.9
MAX_SPANS_A_NODE = 1200  # four steps of 94 layers at three spans each
MAX_SPANS = 12_000


class Timeline:
    """What all who look are shown: one glance serves them together.

    epoch: of the membership. With each one nodes may have come, which don't know yet that somebody
    looks, or have left.
    """

    def __init__(self, tracer: Tracer, nodes: int, epoch: Callable[[], int] = lambda: 0) -> None:
        self._tracer = tracer
        self._epoch, self._watched_epoch = epoch, 0
        self._kept = min(MAX_SPANS_A_NODE, MAX_SPANS // max(nodes, 1))
        self._spans: dict[str, deque[Span]] = {}  # by lane
        self._body = b""
        self._forgetting: asyncio.TimerHandle | None = None
        self._glance: asyncio.Task[None] | None = None
        self._glanced_at = float("-inf")

    async def look(self) -> bytes:
        """The last steps as they ran, as `timeline_document` puts them, in JSON. kept: the most
        spans of a node. problem: why they may be old."""
        self._watch()
        if self._glance is None and monotonic() - self._glanced_at >= BETWEEN_GLANCES_SECONDS:
            self._glance = asyncio.create_task(self._gather(), name="timeline-glance")
        if self._glance is not None:
            await asyncio.shield(self._glance)
        return self._body

    def _watch(self) -> None:
        epoch = self._epoch()
        if self._forgetting is None or epoch != self._watched_epoch:
            self._tracer.watch(self._kept)
        if epoch != self._watched_epoch:
            self._spans.clear()
        self._watched_epoch = epoch
        if self._forgetting is not None:
            self._forgetting.cancel()
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(LOOKED_AWAY_SECONDS, self._look_away)

    def _look_away(self) -> None:
        self._forgetting = None
        self._tracer.watch(0)

    async def _gather(self) -> None:
        try:
            taken = await self._tracer.glance()
            problem = None if taken is not None else "a trace is being taken meanwhile"
            for lane, spans in lanes_of(taken or {}).items():
                self._spans.setdefault(lane, deque(maxlen=self._kept)).extend(spans)
        except NodeDied as error:  # the rest of the page goes on, and says this
            problem = str(error)
        finally:
            self._glanced_at = monotonic()
            self._glance = None
        document = {**timeline_document(self._spans), "kept": self._kept, "problem": problem}
        self._body = msgspec.json.encode(document)


def timeline_document(nodes: Mapping[str, "deque[Span]"]) -> dict[str, Any]:
    """nodes: of each lane its spans as [kind, micro-batch, layer, start, duration]; kind is a
    position in `kinds`, times are microseconds from the earliest start. devices: the lanes of what
    devices did, beside those of the nodes that they belong to.

    >>> timeline_document({"a": deque([Span("expert", 0, 3, 1.5, 1.502)])})
    {'kinds': ['expert'], 'nodes': {'a': [[0, 0, 3, 0, 2000]]}, 'devices': []}
    """
    origin = min((span.start for spans in nodes.values() for span in spans), default=0.0)
    kinds: dict[str, int] = {}
    rows = {
        node: [
            [
                kinds.setdefault(span.kind, len(kinds)),
                span.micro_batch,
                span.layer,
                round((span.start - origin) * 1e6),
                round((span.end - span.start) * 1e6),
            ]
            for span in spans
        ]
        for node, spans in nodes.items()
    }
    devices = [lane for lane, spans in nodes.items() if spans and spans[0].on_device]
    return {"kinds": list(kinds), "nodes": rows, "devices": devices}
