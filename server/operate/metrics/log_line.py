"""A line in the log every few seconds, as long as there is traffic."""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from megainfer.messages.message import Role
from server.operate.metrics.engines import kv_usage
from server.operate.metrics.requests import RequestMetrics
from server.operate.nodes import NodeBoard

log = logging.getLogger("megainfer")


class TrafficLog:
    """Rates are those since the last line; the share of cached tokens is, too."""

    def __init__(
        self, requests: RequestMetrics, board: NodeBoard, clock: Callable[[], float] = monotonic
    ) -> None:
        self._requests = requests
        self._board = board
        self._clock = clock
        self._before = self._totals()
        self._was_busy = False

    async def run(self, seconds: float) -> None:
        """Write a line every `seconds`, until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            line = self.line()
            if line is not None:
                log.info(line)

    def line(self) -> str | None:
        """What has happened since the last call; None where nothing has, but for one last line."""
        before, self._before = self._before, self._totals()
        elapsed, prompt, generated, queried, hit = (
            now - then for now, then in zip(self._before, before, strict=True)
        )
        if queried < 0 or hit < 0:
            queried = hit = 0.0  # a node has died, and counts from zero
        running, waiting = self._count("running"), self._count("waiting")
        busy = bool(prompt or generated or running or waiting)
        was_busy, self._was_busy = self._was_busy, busy
        if not (busy or was_busy) or elapsed <= 0:
            return None
        nodes = self._board.of_role(Role.ATTENTION)
        usage = sum(map(kv_usage, nodes)) / len(nodes) if nodes else 0.0
        return (
            f"prompts {prompt / elapsed:.1f} tokens/s, generation {generated / elapsed:.1f} "
            f"tokens/s, running {running}, waiting {waiting}, KV cache {usage:.1%}, "
            f"prefix cache hits {hit / queried if queried else 0.0:.1%}"
        )

    def _totals(self) -> tuple[float, ...]:
        """Time, tokens of prompts, tokens generated, looked up in the prefix cache, found there."""
        requests = self._requests
        queried, hit = self._count("prefix_queried_tokens"), self._count("prefix_hit_tokens")
        return self._clock(), requests.prompt_tokens, requests.generation_tokens, queried, hit

    def _count(self, counter: str) -> int:
        return sum(n.counters.get(counter, 0) for n in self._board.of_role(Role.ATTENTION))
