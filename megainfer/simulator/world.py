"""The simulated nodes, the clock that they share, and the tally of what they do."""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from megainfer.gather import Batch
from megainfer.pipeline import PingPong
from megainfer.simulator.policies import rule_of
from megainfer.simulator.scenario import Chance, Outcome, Scenario


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario to its end."""
    world = _World(scenario)
    for node in world.attention:
        world.clock.at(node.born, node.join)
        if node.dies is not None:
            world.clock.at(node.dies, node.die)
    world.clock.run(scenario.duration)
    return world.outcome()


@dataclass
class _Clock:
    """Runs actions in the order of their times; those of equal times in the order of asking."""

    now: float = 0.0
    _queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _asked: int = 0

    def at(self, time: float, action: Callable[[], None]) -> None:
        self._asked += 1
        heapq.heappush(self._queue, (time, self._asked, action))

    def run(self, until: float) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = until


class _World:
    """What all simulated nodes share."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = _Clock()
        self.random = random.Random(scenario.seed)
        self.attention = [_AttentionNode(self, n) for n in range(scenario.attention_nodes)]
        self.experts = [_ExpertNode(self, n) for n in range(scenario.expert_nodes)]

    def jittered(self, seconds: float) -> float:
        return seconds * max(0.5, self.random.gauss(1.0, self.scenario.jitter))

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def factor(self, chance: Chance) -> float:
        return chance.factor if self.happens(chance.probability) else 1.0

    def after_transfer(self, action: Callable[[], None]) -> None:
        self.clock.at(self.clock.now + self.jittered(self.scenario.transfer), action)

    def counted(self, start: float, end: float) -> float:
        """How much of a span lies between the warm-up and the end."""
        return max(0.0, min(end, self.scenario.duration) - max(start, self.scenario.warm_up))

    def outcome(self) -> Outcome:
        time = self.counted(0, self.scenario.duration)
        batches = max(1, sum(e.batches for e in self.experts))
        return Outcome(
            tokens_per_second=sum(a.tokens for a in self.attention) / time,
            node_tokens=tuple(a.tokens for a in self.attention),
            sources_per_batch=sum(e.sources for e in self.experts) / batches,
            rows_per_batch=sum(e.rows for e in self.experts) / batches,
            attention_idle=1
            - sum(a.busy_time for a in self.attention) / sum(a.lifetime() for a in self.attention),
            expert_idle=1 - sum(e.busy_time for e in self.experts) / (time * len(self.experts)),
            longest_wait=max(e.longest_wait for e in self.experts),
            unanswered=max(e.unanswered() for e in self.experts),
        )


class _ExpertNode:
    """Serves what its rule says, one batch at a time."""

    def __init__(self, world: _World, index: int) -> None:
        self.world = world
        self.index = index
        self.factor = (world.scenario.expert_factors or (1.0,) * (index + 1))[index]
        self.rule = rule_of(world.scenario)
        self.busy = False
        self.wakes: set[float] = set()
        self.waiting: dict[tuple[int, int], float] = {}  # (source, micro-batch) -> since when
        self.batches = self.sources = self.rows = 0
        self.busy_time = self.longest_wait = 0.0

    def receive(self, source: int, micro_batch: int, layer: int, rows: int) -> None:
        now = self.world.clock.now
        if not self.world.attention[source].known:
            return  # The mailbox drops what comes from outside the epoch.
        self.rule.arrived(source, micro_batch, layer, rows, now)
        if rows:
            self.waiting[source, micro_batch] = now
        self._work()

    def rest(self, source: int, micro_batch: int) -> None:
        if self.world.attention[source].known:
            self.rule.rest(source, micro_batch)
            self._work()

    def left(self, source: int) -> None:
        self.rule.left(source)
        self.waiting = {key: at for key, at in self.waiting.items() if key[0] != source}
        self._work()

    def unanswered(self) -> float:
        now = self.world.clock.now
        return max((now - since for since in self.waiting.values()), default=0.0)

    def _work(self) -> None:
        if self.busy:
            return
        batch = self.rule.next(self.world.clock.now)
        if batch:
            self._serve(batch)
        else:
            self._wake_at(self.rule.deadline())

    def _wake_at(self, deadline: float | None) -> None:
        if deadline is not None and deadline not in self.wakes:
            self.wakes.add(deadline)
            self.world.clock.at(deadline, self._wake)

    def _wake(self) -> None:
        self.wakes.discard(self.world.clock.now)
        self._work()

    def _serve(self, batch: Batch) -> None:
        now = self.world.clock.now
        rows = sum(batch.rows.values())
        end = now + self.factor * self.world.jittered(self.world.scenario.expert.of(rows))
        self.busy = True
        self.world.clock.at(end, partial(self._done, batch, now))
        waits = [now - self.waiting.pop((source, batch.micro_batch)) for source in batch.rows]
        self.longest_wait = max(self.longest_wait, *waits)
        self.busy_time += self.world.counted(now, end)
        if now >= self.world.scenario.warm_up:
            self.batches += 1
            self.sources += len(batch.rows)
            self.rows += rows

    def _done(self, batch: Batch, started: float) -> None:
        self.busy = False
        self.rule.served(batch, started, self.world.clock.now)
        for source in batch.rows:
            node = self.world.attention[source]
            reply = partial(node.replied, batch.micro_batch, batch.layer, self.index)
            self.world.after_transfer(reply)
        self._work()


class _AttentionNode:
    """Runs the attention half of whichever micro-batch `PingPong` names."""

    def __init__(self, world: _World, index: int) -> None:
        scenario = world.scenario
        self.world = world
        self.index = index
        self.born = dict(scenario.joins).get(index, 0.0)
        self.dies = dict(scenario.deaths).get(index)
        self.pingpong = PingPong(scenario.micro_batches, scenario.layers)
        self.steps = 0
        self.step_factors = [1.0] * scenario.micro_batches
        self.alive = self.known = self.busy = False
        self.tokens = self.busy_time = 0.0

    def lifetime(self) -> float:
        dies = self.world.scenario.duration if self.dies is None else self.dies
        return self.world.counted(self.born, dies)

    def join(self) -> None:
        self.alive = self.known = True
        for expert in self.world.experts:
            expert.rule.joined(self.index)
        for mb in range(self.world.scenario.micro_batches):
            self._start(mb)
        self._work()

    def die(self) -> None:
        self.alive = False
        self.world.clock.at(self.world.clock.now + self.world.scenario.detection, self._leave)

    def replied(self, micro_batch: int, layer: int, expert_node: int) -> None:
        if self.alive:
            self.pingpong.replied(micro_batch, layer, expert_node)
            self._work()

    def _leave(self) -> None:
        self.known = False
        for expert in self.world.experts:
            expert.left(self.index)

    def _start(self, mb: int) -> None:
        self.steps += 1
        self.pingpong.start(mb, self.steps)
        self.step_factors[mb] = self.world.factor(self.world.scenario.long_steps)

    def _work(self) -> None:
        mb = None if self.busy or not self.alive else self.pingpong.next()
        if mb is None:
            return
        if self.pingpong.next_layer(mb) < self.world.scenario.layers:
            self._compute(mb)
            return
        self.pingpong.finished(mb)
        if self.world.happens(self.world.scenario.rests):
            self._rest(mb)
            self._work()
        else:
            self._start(mb)
            self._compute(mb)

    def _rest(self, mb: int) -> None:
        for expert in self.world.experts:
            self.world.after_transfer(partial(expert.rest, self.index, mb))
        self.world.clock.at(
            self.world.clock.now + self.world.scenario.rest_time, partial(self._wake, mb)
        )

    def _wake(self, mb: int) -> None:
        if self.alive:
            self._start(mb)
            self._work()

    def _compute(self, mb: int) -> None:
        self.busy = True
        now, scenario = self.world.clock.now, self.world.scenario
        factor = scenario.slowness(self.index, now) * self.step_factors[mb]
        factor *= self.world.factor(scenario.stalls)
        end = now + factor * self.world.jittered(scenario.attention.of(scenario.rows))
        self.world.clock.at(end, partial(self._computed, mb, now))

    def _computed(self, mb: int, started: float) -> None:
        self.busy = False
        if self.alive:
            self._count(started)
            self._dispatch(mb)
            self._work()

    def _count(self, started: float) -> None:
        now, scenario = self.world.clock.now, self.world.scenario
        self.busy_time += self.world.counted(started, now)
        if now >= scenario.warm_up:
            self.tokens += scenario.rows / scenario.layers

    def _dispatch(self, mb: int) -> None:
        layer = self.pingpong.next_layer(mb)
        rows = [self._rows() for _ in self.world.experts]
        self.pingpong.dispatched(mb, layer, [n for n, count in enumerate(rows) if count])
        for expert, count in zip(self.world.experts, rows, strict=True):
            self.world.after_transfer(partial(expert.receive, self.index, mb, layer, count))

    def _rows(self) -> int:
        scenario = self.world.scenario
        if self.world.happens(scenario.zero_rows):
            return 0
        return max(1, round(scenario.rows * scenario.choosing))
