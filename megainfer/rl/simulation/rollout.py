"""One rollout: each answer grows by what is asked, as many at a time as there are places."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from megainfer.rl.simulation.engine import DecodeTimes

QUANTUM = 64
"""Decode steps that are looked at together: an answer leaves its place at the end of them."""


@dataclass(frozen=True, slots=True)
class Growth:
    """An answer in a rollout. context: tokens that it has, its prompt included; tokens: that are
    added, at least one."""

    context: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Rolled:
    """decode_steps: until the last answer has grown. tokens: that were drawn."""

    seconds: float
    decode_steps: int
    tokens: int

    def occupancy(self, places: int) -> float:
        """The share of decoding places that had an answer."""
        return self.tokens / (places * self.decode_steps)


def roll(growths: Sequence[Growth], engine: DecodeTimes) -> Rolled:
    """Draw them in their order; whoever finds no place waits for one."""
    waiting, running = deque(growths), list[tuple[int, int]]()  # (its last step, where it began)
    seconds, now, begun, last = 0.0, 0, 0.0, 0
    while waiting or running:
        while waiting and len(running) < engine.places:
            growth = waiting.popleft()
            heappush(running, (now + growth.tokens, growth.context - now))
            begun += growth.context - now
            last = max(last, now + growth.tokens)
        steps = min(QUANTUM, last - now)
        context = begun / len(running) + now + steps / 2
        seconds += steps * engine.decode_seconds(len(running), max(context, 1.0))
        now += steps
        while running and running[0][0] <= now:
            begun -= heappop(running)[1]
    return Rolled(seconds, last, sum(growth.tokens for growth in growths))
