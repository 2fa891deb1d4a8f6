"""A simulated expert node."""

from functools import partial
from typing import TYPE_CHECKING

from megainfer.gather import Batch
from megainfer.simulator.policies import rule_of
from megainfer.simulator.scenario import Span

if TYPE_CHECKING:
    from megainfer.simulator.world import World


class ExpertNode:
    """Serves what its rule says, one batch at a time."""

    def __init__(self, world: "World", index: int) -> None:
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
        self.world.record(
            Span("expert", self.index, batch.micro_batch, batch.layer, now, end, rows)
        )
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
            node.reply(batch.micro_batch, batch.layer, self.index)
        self._work()
