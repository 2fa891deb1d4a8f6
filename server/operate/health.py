"""Whether the server can do its work, and how that is known."""

import asyncio
import itertools
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from megainfer.errors import MegaInferError
from megainfer.frontend.condition import Phase
from megainfer.frontend.engine_client import EngineClient
from megainfer.messages.to_child import GetStats
from megainfer.sampling import SamplingParams
from server.http.occupancy import Occupancy
from server.operate.nodes import NodeBoard

log = logging.getLogger(__name__)

PROOF_SECONDS = 30.0
"""For how long a token that came through proves that tokens come through."""
PROBE_SECONDS = 5.0
"""How long a probe may take, from its submission to the last node's word."""
PROBE_TOKENS = 8

Ask = Callable[[GetStats], object]


@dataclass(frozen=True, slots=True)
class HealthReport:
    """state: `ok`, `degraded`, `recovering`, `loading`, `draining`, `hung` or `failed`. reason: in
    words for anybody. seconds: for how long, where a node was lost."""

    state: str
    reason: str | None = None
    seconds: float | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether whoever can choose should send new requests here."""
        return self.state in ("ok", "degraded")


class Health:
    """Whether new requests are taken and computed: nodes are there and answer, or others do their
    work."""

    def __init__(self, engine: EngineClient, board: NodeBoard, occupancy: Occupancy) -> None:
        self._engine = engine
        self._board = board
        self._occupancy = occupancy

    def report(self) -> HealthReport:
        if self._occupancy.draining:
            text = "the server is draining: it finishes what it has begun and takes nothing new"
            return HealthReport("draining", text)
        condition = self._engine.condition
        if condition.serves and (hung := self._board.hung()) is not None:
            return HealthReport("hung", hung)
        if condition.phase is Phase.HEALTHY:
            return HealthReport("ok")
        return HealthReport(str(condition.phase), condition.text, condition.seconds)

    def problem(self) -> str | None:
        """Why new requests shouldn't be sent here, in words for anybody; None: they may."""
        report = self.report()
        return None if report.takes_requests else report.reason


class Readiness:
    """A token went through an attention node and past every expert node lately.

    Real requests prove it; without any, one token is asked for. A dispatch goes to every expert
    node, with no rows where no token chose its experts: that it was taken in is what is proved of
    such a node. ask: sends a message to all nodes.
    """

    def __init__(self, engine: EngineClient, health: Health, board: NodeBoard, ask: Ask) -> None:
        self._engine = engine
        self._health = health
        self._board = board
        self._ask = ask
        self._numbers = itertools.count()
        self._probe: asyncio.Task[str | None] | None = None

    async def problem(self) -> str | None:
        """Why not, in words; None when it is ready. Takes at most PROBE_SECONDS."""
        problem = self._health.problem()
        if problem is not None or self._is_proved():
            return problem
        if self._probe is None or self._probe.done():  # all who ask meanwhile share one
            self._probe = asyncio.create_task(self._try(), name="readiness-probe")
        return await asyncio.shield(self._probe)

    def _is_proved(self) -> bool:
        since = monotonic() - PROOF_SECONDS
        last = self._engine.last_token_at
        return last is not None and last >= since and not self._board.idle_experts(since)

    async def _try(self) -> str | None:
        started, token_came = monotonic(), False
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                await self._generate()
                token_came = True
                await self._hear_of_experts(started)
        except TimeoutError:
            if (problem := self._health.problem()) is not None:
                return problem  # a node was lost meanwhile: that is what the probe waited for
            missing = ", ".join(self._board.idle_experts(started)) or "the attention node"
            what = "a token came, but nothing is known of" if token_came else "no token came from"
            return f"{what} {missing} within {PROBE_SECONDS:g} s of a probe"
        except MegaInferError as error:
            log.warning("a readiness probe failed: %s", error)
            return "a probe failed; the server's log says why"
        return None

    async def _generate(self) -> None:
        limits = self._engine.limits
        length = min(PROBE_TOKENS, limits.max_model_len - 1, limits.vocab_size)
        params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True)
        name, prompt = f"readiness-{uuid.uuid4().hex}", list(range(length))
        with self._engine.generate(name, prompt, params, observed=False) as stream:
            async for _ in stream:
                pass

    async def _hear_of_experts(self, since: float) -> None:
        self._ask(GetStats(ticket=next(self._numbers)))
        while self._board.idle_experts(since):
            self._board.changed.clear()
            await self._board.changed.wait()
