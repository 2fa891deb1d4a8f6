"""One seed: a fault is done to an instance at work, and what came of it is judged."""

import asyncio
import os
import random
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import httpx

from tests.support.chaos.draw import AT_WORK, GRAVE, NODES, STARTING, Draw, Fault, Phase, Target
from tests.support.chaos.instance import Instance
from tests.support.chaos.orders import Done, Order
from tests.support.chaos.wishes import Answer, End, Outcome, Wish, ask_all, mistakes, wishes

POOL = wishes(1, count=48, tokens=32)
LONG_POOL = wishes(2, count=12, tokens=120)
"""Of one request alone, long enough for a fault to come into its middle."""
EVERY = (*POOL, *LONG_POOL)
AT_ONCE = 16
FIRE_SECONDS = 0.01
SCALE_SECONDS = 60.0


@dataclass
class Report:
    """What one seed gave. fired: whether the fault was done at all. pause: the longest time for
    which a client saw nothing, from the fault on; None without one. back: seconds until a node
    that died served again."""

    seed: int
    draw: str
    fault: str
    target: str
    phase: str
    load: int
    shape: str
    fired: bool = False
    ended: bool = False
    wrong: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    pause: float | None = None
    back: list[tuple[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    scaled: list[str] = field(default_factory=list)


def report_of(draw: Draw) -> Report:
    return Report(
        draw.seed, str(draw), draw.fault, draw.target, draw.phase, draw.load, str(draw.shape)
    )


class Answers:
    """What an undisturbed instance gives to these wishes of the pools.

    elsewhere: gives what instances of other nodes give to a wish.
    """

    def __init__(
        self, elsewhere: Callable[[Wish], Sequence[Answer]], wishes: Sequence[Wish] = EVERY
    ) -> None:
        self._elsewhere, self._wishes = elsewhere, wishes
        self._known: dict[int, Answer] = {}

    def learn(self, instance: Instance) -> None:
        """Ask for everything once; whatever another instance of this shape gave comes again."""
        outcomes = [Outcome(wish) for wish in self._wishes]
        asyncio.run(ask_all(instance.url, outcomes, AT_ONCE))
        for outcome in outcomes:
            wish = outcome.wish
            assert outcome.end is End.DONE, f"undisturbed, {wish} gave {outcome}"
            known = self._known.setdefault(id(wish), outcome.answer)
            assert not mistakes(outcome, known, moved=False), f"{wish} gives this and that"

    def judge(self, outcome: Outcome, moved: bool) -> list[str]:
        """What is wrong. moved: experts' tokens may have gone to other nodes, which changes the
        last bits of sums; then nothing is known of a wish whose answer hangs on these."""
        wish = outcome.wish
        found = mistakes(outcome, self._known[id(wish)], moved)
        if found and moved and self._is_undecided(wish):
            return []
        return [f"{wish.kind}: {mistake}"[:1500] for mistake in found]

    def _is_undecided(self, wish: Wish) -> bool:
        """Whether undisturbed instances of other nodes give other answers."""
        known = self._known[id(wish)]
        others = (Outcome(wish, End.DONE, answer=answer) for answer in self._elsewhere(wish))
        return any(mistakes(other, known, moved=True) for other in others)

    def drawn(self, draw: Draw) -> list[Wish]:
        """What is asked for in a trial."""
        rng = random.Random(f"load {draw.seed}")
        if draw.load == 1:
            return [rng.choice(LONG_POOL)]
        return rng.choices(POOL, k=draw.load)


# --- what is done -----------------------------------------------------------------------------


def orders_of(draw: Draw) -> list[Order]:
    """The fault, and before it another where it is to meet a recovery."""
    if draw.phase is not Phase.RECOVERY:
        order = _order(draw, _place(draw))
        if order.place == "load" and draw.phase is Phase.SCALE:  # of those that are added
            order = Order(**{**_fields(order), "node": None})
        if order.place == "enter":
            order = Order(**{**_fields(order), "nth": 1})
        return [order]
    target, node = draw.first_node
    first = Order(Fault.KILL, target, "step", nth=1 + draw.nth % 10, node=_anybody(draw, node))
    return [first, _second(draw)]


def _second(draw: Draw) -> Order:
    """Of those that come back, or of others while they come back."""
    if draw.target is Target.SUPERVISOR:
        return _order(draw, "turn")
    if draw.fault in (Fault.NAN, Fault.HEADER):
        return _order(draw, "step")
    comes_back = draw.target is draw.first_node[0]
    if draw.fault is Fault.UNREADABLE or (comes_back and draw.variant % 2):
        nth = draw.nth % 20 + 1
        order = _order(draw, "load" if draw.target is not Target.SERVER else "step")
        return Order(**{**_fields(order), "node": None, "new": comes_back, "nth": nth})
    return Order(**{**_fields(_order(draw, "enter")), "nth": 1})


def _fields(order: Order) -> dict[str, Any]:
    return {name: getattr(order, name) for name in order.__dataclass_fields__}


def _order(draw: Draw, place: str) -> Order:
    return Order(draw.fault, draw.target, place, draw.nth, draw.node, variant=draw.variant)


def _anybody(draw: Draw, node: int) -> int | None:
    return None if draw.load == 1 else node


def _place(draw: Draw) -> str:
    if draw.target is Target.SUPERVISOR:
        return "turn"
    if draw.fault is Fault.UNREADABLE:
        return "load"
    if draw.phase is Phase.SCALE and draw.target in NODES:
        return ("load", "enter", "step")[draw.variant % 3]
    return "step" if draw.phase in (Phase.DRAIN, Phase.SCALE) else str(draw.phase)


# --- what may come of it ------------------------------------------------------------------------


@dataclass(frozen=True)
class Allowed:
    """cut: requests may end with their connection. error: they may end with an error that says
    so. end: the instance may end. must_end: it has to."""

    cut: bool = False
    error: bool = False
    end: bool = False
    must_end: bool = False


def allowed(draw: Draw) -> Allowed:
    """By the promises."""
    if draw.phase in STARTING:
        must = draw.target is Target.SUPERVISOR and draw.fault in GRAVE
        stays = draw.target is Target.SUPERVISOR and draw.fault is Fault.STOP_AND_GO
        return Allowed(end=draw.fault is not Fault.SLOW and not stays, must_end=must)
    match draw.target:
        case Target.SUPERVISOR if draw.fault in GRAVE:
            return Allowed(cut=True, error=True, end=True, must_end=True)
        case Target.SUPERVISOR if draw.fault is Fault.STOP and draw.phase not in AT_WORK:
            return Allowed(cut=True, error=True, end=True, must_end=True)
        case Target.SERVER if draw.fault is not Fault.SLOW:
            return Allowed(cut=True, error=True)
    return Allowed(error=draw.fault is Fault.NAN)


# --- a trial ------------------------------------------------------------------------------------


class Trial:
    """One draw on an instance that rests (or, of the phases of a start, on one that begins)."""

    def __init__(self, draw: Draw, instance: Instance, answers: Answers) -> None:
        self._draw = draw
        self._instance = instance
        self._answers = answers
        self._allowed = allowed(draw)
        self._count = instance.board.count  # of the orders that this is about
        self.report = report_of(draw)

    def run(self) -> Report:
        """Afterwards the instance rests again, or has ended (`report.ended`)."""
        began, since = monotonic(), len(self._instance.served.output)
        starts = self._draw.phase in STARTING
        self._judge(asyncio.run(self._start() if starts else self._disturb()))
        self._judge_end()
        if self._draw.fault is Fault.NAN and not self.report.ended:
            self._ask_again()
        self.report.back = self._instance.recoveries(since)
        self.report.seconds = round(monotonic() - began, 3)
        return self.report

    @property
    def _done(self) -> list[Done]:
        done = self._instance.board.done(self._count)
        return [one for one in done if one.order == self._last]

    @property
    def _last(self) -> int:
        """The order that the trial is about."""
        return 1 if self._draw.phase is Phase.RECOVERY else 0

    async def _start(self) -> list[Outcome]:
        """The order was given before; ask for something once it serves, if it does."""
        waking = asyncio.create_task(self._wake())
        try:
            ready = await asyncio.to_thread(self._instance.wait_until_ready)
        finally:
            waking.cancel()
            await asyncio.gather(waking, return_exceptions=True)
        if not ready:
            self._check_end()
            return []
        outcomes = self._outcomes()
        await ask_all(self._instance.url, outcomes, self._draw.load)
        return outcomes

    async def _disturb(self) -> list[Outcome]:
        outcomes = self._outcomes()
        asking = asyncio.create_task(ask_all(self._instance.url, outcomes, self._draw.load))
        try:
            if self._draw.phase in (Phase.DRAIN, Phase.SCALE):
                while not any(outcome.admitted for outcome in outcomes) and not asking.done():
                    await asyncio.sleep(FIRE_SECONDS)
            self._count = self._instance.board.give(*orders_of(self._draw))
            waking = asyncio.create_task(self._wake())
            if self._draw.phase is Phase.DRAIN:
                self._signal(signal.SIGTERM)
            if self._draw.phase is Phase.SCALE:
                await self._scale(1)
            await asking
            if not self._done:
                waking.cancel()
            await asyncio.gather(waking, return_exceptions=True)
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return outcomes

    async def _scale(self, more: int) -> None:
        """So many nodes of each role beyond the shape's. What comes of the wish itself is told, but
        not judged: the server that was asked may be the one that dies."""
        shape = self._draw.shape
        body = {"attn": shape.attention + more, "ffn": shape.experts + more}
        async with httpx.AsyncClient(
            base_url=self._instance.url, timeout=SCALE_SECONDS, trust_env=False
        ) as client:
            try:
                response = await client.post("/admin/scale", json=body)
            except httpx.HTTPError as error:
                self.report.scaled.append(f"{body}: {error!r}")
            else:
                self.report.scaled.append(f"{body}: {response.status_code} {response.text[:300]}")

    def _outcomes(self) -> list[Outcome]:
        return [Outcome(wish) for wish in self._answers.drawn(self._draw)]

    async def _wake(self) -> None:
        """SIGCONT to whoever stopped, late. A supervisor that has stopped starts nobody."""
        if self._draw.fault not in (Fault.STOP, Fault.STOP_AND_GO):
            return
        while not (done := self._done):
            await asyncio.sleep(FIRE_SECONDS)
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(done[0].pid)
            try:
                await asyncio.sleep(self._draw.resume)
                if self._draw.fault is Fault.STOP_AND_GO:
                    signal.pidfd_send_signal(fd, signal.SIGCONT)
                elif self._draw.target is Target.SUPERVISOR and not self._goes_on:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)

    @property
    def _goes_on(self) -> bool:
        """Whether what is asked for has an end though the supervisor has stopped."""
        return self._draw.phase in AT_WORK

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._instance.served.process.pid, number)

    # --- judging --------------------------------------------------------------------------------

    def _judge(self, outcomes: Sequence[Outcome]) -> None:
        report, may = self.report, self._allowed
        self._instance.board.give()  # nobody does anything any more
        report.fired = bool(self._done)
        self._instance.moved |= self._draw.phase is Phase.SCALE
        moved = self._instance.moved
        for outcome in outcomes:
            report.ends[outcome.end] = report.ends.get(outcome.end, 0) + 1
            report.wrong += self._answers.judge(outcome, moved)
            if not self._may_end_so(outcome, may):
                told = f"{outcome.wish.kind}: {outcome.end} {outcome.text}"
                report.wrong.append(told[:1500])
        report.pause = self._pause(outcomes)

    def _may_end_so(self, outcome: Outcome, may: Allowed) -> bool:
        match outcome.end:
            case End.DONE:
                return True
            case End.CUT:
                return may.cut and "no end within" not in outcome.text
            case End.REFUSED:
                return may.cut or may.error or self._draw.phase is Phase.DRAIN
        return may.error

    def _pause(self, outcomes: Sequence[Outcome]) -> float | None:
        done = self._instance.board.done(self._count)
        if not done:
            return None
        at, longest = done[0].at, 0.0
        for outcome in outcomes:
            for before, after in zip(outcome.times, outcome.times[1:], strict=False):
                if after > at:
                    longest = max(longest, after - max(before, at))
        return round(longest, 4)

    def _judge_end(self) -> None:
        """Either all is as it was, or nothing is left."""
        draw = self._draw
        if draw.target is Target.SUPERVISOR and draw.fault is Fault.STOP:
            self._signal(signal.SIGKILL)
            self._check_end()
        elif draw.phase is Phase.DRAIN or self._has_ended():
            self._check_end()
        else:
            if draw.phase is Phase.SCALE and self._instance.is_alive:
                self._instance.wait_until_back()
                asyncio.run(self._scale(0))
            self.report.wrong += self._instance.settle()
            self.report.ended = not self._instance.is_alive

    def _has_ended(self) -> bool:
        """As it may, or must."""
        may = self._allowed
        return (self.report.fired and may.must_end) or (may.end and not self._instance.is_alive)

    def _ask_again(self) -> None:
        """What was no number is nowhere: in no block that others use."""
        outcomes = self._outcomes()
        asyncio.run(ask_all(self._instance.url, outcomes, self._draw.load))
        for outcome in outcomes:
            self.report.wrong += self._answers.judge(outcome, self._instance.moved)
            if outcome.end is not End.DONE:
                self.report.wrong.append(f"{outcome.wish.kind}, asked again: {outcome.text}")

    def _check_end(self) -> None:
        self.report.ended = True
        if left := self._instance.left_behind():
            self.report.wrong.append(f"left behind: {left}")
