"""The simulated nodes, the clock that they share, and the tally of what they do."""

import random
from collections.abc import Callable, Iterable
from functools import partial

from megainfer.simulator.attention_node import AttentionNode
from megainfer.simulator.clock import Clock
from megainfer.simulator.expert_node import ExpertNode
from megainfer.simulator.feed import Feed, Serving, Steady
from megainfer.simulator.request import Request, Stopwatch
from megainfer.simulator.scenario import Chance, Outcome, Scenario, Span


def simulate(scenario: Scenario) -> Outcome:
    """Run a scenario to its end."""
    world = World(scenario)
    world.receive_requests()
    for node in world.attention:
        world.clock.at(node.born, node.join)
        if node.dies is not None:
            world.clock.at(node.dies, node.die)
    world.clock.run(scenario.duration)
    return world.outcome()


class World:
    """What all simulated nodes share."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.clock = Clock()
        self.random = random.Random(scenario.seed)
        self.watch = Stopwatch(scenario.warm_up)
        self.serving: list[Serving] = []  # of each attention node, under a load
        self.homeless: list[Request] = []  # requests while no attention node lives
        nodes = range(scenario.attention_nodes)
        self.attention = [AttentionNode(self, n, self._feed()) for n in nodes]
        self.experts = [ExpertNode(self, n) for n in range(scenario.expert_nodes)]
        self.shares = scenario.choosing_each or (scenario.choosing,) * scenario.expert_nodes
        self.spans: list[Span] = []

    def receive_requests(self) -> None:
        """Whoever is there from the beginning comes before the nodes' first steps."""
        for request in self.scenario.load.requests if self.scenario.load else ():
            if request.at == 0:
                self.serving[self._least_loaded(range(len(self.serving)))].offer(request)
            else:
                self.clock.at(request.at, partial(self._route, request))

    def orphaned(self, node: int) -> None:
        """The requests of a node that died go to the others."""
        if self.serving:
            for request in list(self.serving[node].evicted(self.clock.now)):
                self._route(request)

    def jittered(self, seconds: float) -> float:
        return seconds * max(0.5, self.random.gauss(1.0, self.scenario.jitter))

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.random.random() < probability

    def factor(self, chance: Chance) -> float:
        return chance.factor if self.happens(chance.probability) else 1.0

    def after_transfer(self, start: float, seconds: float, action: Callable[[], None]) -> None:
        """When messages that are sent at `start` have arrived."""
        self.clock.at(start + self.jittered(seconds), action)

    def counted(self, start: float, end: float) -> float:
        """How much of a span lies between the warm-up and the end."""
        return max(0.0, min(end, self.scenario.duration) - max(start, self.scenario.warm_up))

    def record(self, span: Span) -> None:
        """Keep it if it begins while spans are kept."""
        begin = self.scenario.warm_up
        if begin <= span.start < begin + self.scenario.recorded:
            self.spans.append(span)

    def outcome(self) -> Outcome:
        time = self.counted(0, self.scenario.duration)
        batches = max(1, sum(e.batches for e in self.experts))
        made = self.watch.tokens if self.serving else sum(a.tokens for a in self.attention)
        return Outcome(
            tokens_per_second=made / time,
            node_tokens=tuple(a.tokens for a in self.attention),
            sources_per_batch=sum(e.sources for e in self.experts) / batches,
            rows_per_batch=sum(e.rows for e in self.experts) / batches,
            attention_idle=1
            - sum(a.busy_time for a in self.attention) / sum(a.lifetime() for a in self.attention),
            expert_idle=1 - sum(e.busy_time for e in self.experts) / (time * len(self.experts)),
            longest_wait=max(e.longest_wait for e in self.experts),
            unanswered=max(e.unanswered() for e in self.experts),
            latencies=self.watch.latencies(
                len(self.homeless) + sum(len(serving.waiting) for serving in self.serving)
            ),
            spans=tuple(self.spans),
        )

    def _feed(self) -> Feed:
        scenario = self.scenario
        if scenario.load is None:
            return Steady(scenario.rows)
        self.serving.append(Serving(scenario.load, scenario.micro_batches, self.watch))
        return self.serving[-1]

    def _route(self, request: Request) -> None:
        alive = [node.index for node in self.attention if node.alive]
        if not alive:
            self.homeless.append(request)
            return
        node = self._least_loaded(alive)
        self.serving[node].offer(request)
        self.attention[node].came()

    def _least_loaded(self, nodes: Iterable[int]) -> int:
        """As the router chooses: the node with the fewest tokens outstanding."""
        return min(nodes, key=lambda node: self.serving[node].outstanding)
