"""Nodes that have both roles and keep step with each other, with requests that come."""

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.simulator.feed import Load, Serving
from megainfer.simulator.request import Stopwatch
from megainfer.simulator.scenario import Outcome, Scenario
from megainfer.simulator.work import Work


def simulate_together(scenario: Scenario) -> Outcome:
    """Run a scenario's load on groups that go from layer to layer at once: attention, dispatch,
    experts, combine, and at the end of a step what is outside of layers.

    `attention_nodes` groups have requests and a cache of their own. In each layer all wait for the
    slowest, experts get the rows of all, and messages are as large as those of the group with most
    rows. One step follows the other; a group without work waits with the others. Raises ConfigError
    without a load, or with more than one micro-batch.
    """
    if scenario.load is None or scenario.micro_batches != 1:
        raise ConfigError(
            "roles together are simulated with a load and 1 micro-batch, not "
            f"{scenario.micro_batches} micro-batches of {scenario.rows} rows"
        )
    groups = _Groups(scenario, scenario.load)
    groups.run()
    return groups.outcome()


@dataclass(frozen=True, slots=True)
class _Took:
    """Seconds of a step, and those of them in which a group attends, on average, and in which
    experts compute."""

    seconds: float
    attending: float
    computing: float


class _Groups:
    """All groups of one instance, and the clock that they share."""

    def __init__(self, scenario: Scenario, load: Load) -> None:
        self.scenario = scenario
        self.random = random.Random(scenario.seed)
        self.watch = Stopwatch(math.inf)
        self.serving = [Serving(load, 1, self.watch) for _ in range(scenario.attention_nodes)]
        self.tokens = [0.0] * scenario.attention_nodes
        self.coming = deque(sorted(load.requests, key=lambda request: request.at))
        self.now = 0.0
        self.attending = self.computing = 0.0  # seconds in which attention, and experts, did so
        self.batches = self.rows = 0  # that experts computed

    def run(self) -> None:
        """To the end of the time; the step that would end later isn't made. Whole steps are
        counted, from the first that begins after the warm-up."""
        while self.now < self.scenario.duration:
            if self.now >= self.scenario.warm_up:
                self.watch.since = min(self.watch.since, self.now)
            self._receive()
            works = [own.begin(0) for own in self.serving]
            if not any(works):
                end = self.scenario.duration
                self.now = min(end, self.coming[0].at) if self.coming else end
                continue
            took = self._step(works)
            if self.now + took.seconds > self.scenario.duration:
                return
            self.now += took.seconds
            self._end(works, took)

    def _end(self, works: Sequence[Work | None], took: "_Took") -> None:
        """All have their tokens."""
        for group, work in enumerate(works):
            if work is not None:
                self.serving[group].ended(0, self.now)
                self.tokens[group] += work.tokens * self._counts
        if self._counts:
            self.attending += took.attending
            self.computing += took.computing
            self.batches += self.scenario.layers
            self.rows += self.scenario.layers * sum(work.rows for work in works if work)

    @property
    def _counts(self) -> bool:
        return self.watch.since < math.inf

    def _receive(self) -> None:
        """Requests go to the group with the fewest tokens outstanding, as the router sends them."""
        while self.coming and self.coming[0].at <= self.now:
            least = min(self.serving, key=lambda own: own.outstanding)
            least.offer(self.coming.popleft())

    def _step(self, works: Sequence[Work | None]) -> "_Took":
        scenario = self.scenario
        own = [
            (work, scenario.slowness(group, self.now))
            for group, work in enumerate(works)
            if work is not None
        ]
        halves = [scenario.attention.of_work(work) * factor for work, factor in own]
        rows = [work.rows for work, _ in own]
        ways = sum(
            scenario.transfer_of(way, max(rows)) for way in (scenario.dispatch, scenario.combine)
        )
        experts, layers = scenario.expert.of(sum(rows)), range(scenario.layers)
        attending = sum(max(map(self._jittered, halves)) for _ in layers)
        computing = sum(self._jittered(experts) for _ in layers)
        exchanging = sum(self._jittered(ways) for _ in layers)
        outside = max(
            self._jittered(scenario.sampling.of_work(work) * factor) for work, factor in own
        )
        # Those who wait for the slowest don't work.
        busy = scenario.layers * sum(halves) / len(works) + outside
        return _Took(attending + computing + exchanging + outside, busy, computing)

    def _jittered(self, seconds: float) -> float:
        if not self.scenario.jitter:
            return seconds
        return seconds * max(0.5, self.random.gauss(1.0, self.scenario.jitter))

    def outcome(self) -> Outcome:
        time = self.now - self.watch.since
        if time <= 0:  # Not even one step was whole.
            time = self.scenario.duration
        return Outcome(
            tokens_per_second=self.watch.tokens / time,
            node_tokens=tuple(self.tokens),
            sources_per_batch=float(len(self.serving)),
            rows_per_batch=self.rows / max(1, self.batches),
            attention_idle=max(0.0, 1 - self.attending / time),
            expert_idle=max(0.0, 1 - self.computing / time),
            longest_wait=0.0,
            unanswered=0.0,
            latencies=self.watch.latencies(sum(len(own.waiting) for own in self.serving)),
        )
