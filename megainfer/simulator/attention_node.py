"""A simulated attention node."""

from functools import partial
from typing import TYPE_CHECKING

from megainfer.pipeline import PingPong
from megainfer.simulator.feed import Feed
from megainfer.simulator.scenario import Span
from megainfer.simulator.work import Work

if TYPE_CHECKING:
    from megainfer.simulator.world import World


class Port:
    """One direction of a node's network; it takes one micro-batch's messages at a time if it
    queues."""

    def __init__(self, queues: bool) -> None:
        self._queues = queues
        self._free = 0.0
        self._begun: dict[int, tuple[int, float]] = {}  # micro-batch -> (layer, when)

    def begin(self, now: float, seconds: float, micro_batch: int, layer: int) -> float:
        """When a message of this micro-batch may begin; all of them together take `seconds`."""
        if not self._queues:
            return now
        before, start = self._begun.get(micro_batch, (None, 0.0))
        if layer != before:
            start = max(now, self._free)
            self._free = start + seconds
            self._begun[micro_batch] = layer, start
        return max(now, start)


class AttentionNode:
    """Runs the attention half of whichever micro-batch `PingPong` names."""

    def __init__(self, world: "World", index: int, feed: Feed) -> None:
        scenario = world.scenario
        self.world = world
        self.index = index
        self.feed = feed
        self.born = dict(scenario.joins).get(index, 0.0)
        self.dies = dict(scenario.deaths).get(index)
        self.pingpong = PingPong(scenario.micro_batches, scenario.layers)
        self.steps = 0
        self.step_factors = [1.0] * scenario.micro_batches
        self.work: dict[int, Work] = {}  # of each micro-batch that doesn't rest
        self.idle: set[int] = set()  # micro-batches that have nothing to do
        self.sending, self.receiving = (Port(scenario.queued_transfers) for _ in range(2))
        self.alive = self.known = self.busy = False
        self.tokens = self.busy_time = 0.0

    def lifetime(self) -> float:
        dies = self.world.scenario.duration if self.dies is None else self.dies
        return self.world.counted(self.born, dies)

    def rows_of(self, micro_batch: int) -> int:
        """Rows of the step that this micro-batch is in."""
        work = self.work.get(micro_batch)
        return work.rows if work else 0

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

    def reply(self, micro_batch: int, layer: int, expert_node: int) -> None:
        """An expert node sends what it has computed for this node."""
        scenario, now = self.world.scenario, self.world.clock.now
        seconds = scenario.transfer_of(scenario.combine, self.rows_of(micro_batch))
        start = self.receiving.begin(now, seconds, micro_batch, layer)
        arrive = partial(self.replied, micro_batch, layer, expert_node)
        self.world.after_transfer(start, seconds, arrive)

    def replied(self, micro_batch: int, layer: int, expert_node: int) -> None:
        if self.alive:
            self.pingpong.replied(micro_batch, layer, expert_node)
            self._work()

    def came(self) -> None:
        """There are requests that weren't there before."""
        if self.alive:
            self._start_idle()
            self._work()

    def _leave(self) -> None:
        self.known = False
        for expert in self.world.experts:
            expert.left(self.index)
        self.world.orphaned(self.index)

    def _start(self, mb: int) -> bool:
        work = self.feed.begin(mb)
        if work is None:
            self.idle.add(mb)
            return False
        self.idle.discard(mb)
        self.work[mb] = work
        self.steps += 1
        self.pingpong.start(mb, self.steps)
        self.step_factors[mb] = self.world.factor(self.world.scenario.long_steps)
        return True

    def _start_idle(self) -> None:
        for mb in sorted(self.idle):
            self._start(mb)

    def _work(self) -> None:
        mb = None if self.busy or not self.alive else self.pingpong.next()
        if mb is None:
            return
        if self.pingpong.next_layer(mb) < self.world.scenario.layers:
            self._compute(mb)
            return
        seconds = self.world.scenario.sampling.of_work(self.work[mb])
        if not seconds:
            self._sampled(mb)
            return
        now = self.world.clock.now
        end = now + self.world.scenario.slowness(self.index, now) * self.world.jittered(seconds)
        self.busy = True
        self.world.clock.at(end, partial(self._end_sampling, mb, now))

    def _end_sampling(self, mb: int, started: float) -> None:
        self.busy = False
        if self.alive:
            self._spent(mb, None, started)
            self._sampled(mb)

    def _sampled(self, mb: int) -> None:
        """The step is over, and the next begins."""
        self.pingpong.finished(mb)
        self.feed.ended(mb, self.world.clock.now)
        if self.world.happens(self.world.scenario.rests):
            self._rest(mb)
            self._work()
        elif self._start(mb):
            self._start_idle()
            self._compute(mb)
        else:
            self._say_idle(mb)
            self._start_idle()
            self._work()

    def _rest(self, mb: int) -> None:
        now, scenario = self.world.clock.now, self.world.scenario
        seconds = scenario.transfer_of(scenario.dispatch, 1)
        for expert in self.world.experts:
            self.world.after_transfer(now, seconds, partial(expert.rest, self.index, mb))
        self.world.clock.at(
            self.world.clock.now + self.world.scenario.rest_time, partial(self._wake, mb)
        )

    def _say_idle(self, mb: int) -> None:
        # Nothing that is sent later may come before it.
        scenario = self.world.scenario
        soon = self.world.clock.now + 0.5 * scenario.transfer_of(scenario.dispatch, 1)
        for expert in self.world.experts:
            self.world.clock.at(soon, partial(expert.rest, self.index, mb))

    def _wake(self, mb: int) -> None:
        if self.alive:
            self._start(mb)
            self._work()

    def _compute(self, mb: int) -> None:
        self.busy = True
        now, scenario = self.world.clock.now, self.world.scenario
        factor = scenario.slowness(self.index, now) * self.step_factors[mb]
        factor *= self.world.factor(scenario.stalls)
        end = now + factor * self.world.jittered(scenario.attention.of_work(self.work[mb]))
        self.world.clock.at(end, partial(self._computed, mb, now))

    def _computed(self, mb: int, started: float) -> None:
        self.busy = False
        if self.alive:
            self._spent(mb, self.pingpong.next_layer(mb), started)
            if self.world.clock.now >= self.world.scenario.warm_up:
                self.tokens += self.work[mb].tokens / self.world.scenario.layers
            self._dispatch(mb)
            self._work()

    def _spent(self, mb: int, layer: int | None, started: float) -> None:
        now = self.world.clock.now
        self.busy_time += self.world.counted(started, now)
        self.world.record(
            Span("attention", self.index, mb, layer, started, now, self.work[mb].rows)
        )

    def _dispatch(self, mb: int) -> None:
        layer, sent = self.pingpong.next_layer(mb), self.work[mb].rows
        rows = [self._rows(sent, share) for share in self.world.shares]
        self.pingpong.dispatched(mb, layer, [n for n, count in enumerate(rows) if count])
        scenario = self.world.scenario
        seconds = scenario.transfer_of(scenario.dispatch, sent)
        start = self.sending.begin(self.world.clock.now, seconds, mb, layer)
        for expert, count in zip(self.world.experts, rows, strict=True):
            receive = partial(expert.receive, self.index, mb, layer, count)
            self.world.after_transfer(start, seconds, receive)

    def _rows(self, sent: int, share: float) -> int:
        if self.world.happens(self.world.scenario.zero_rows):
            return 0
        return max(1, round(sent * share))
