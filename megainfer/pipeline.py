"""The ping-pong pipeline: whose turn it is on an attention node, and what that costs.

`PingPong` is the order of work as a pure function of events: no clock, no tensor, no process. The
formulas below it are those of MegaScale-Infer (arXiv 2504.02263), in its letters: T_a and T_e are
the seconds that one micro-batch takes in one layer on an attention node and on an expert node, T_c
the seconds of one transfer in one direction, T_f = max(T_a, T_e), m the number of micro-batches,
L the number of layers. See docs/pipeline.md.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from megainfer.errors import ConfigError, ProtocolError

# A relative error that sums of a few floats may have, and no measured time is exact to.
ROUNDING = 1e-9


@dataclass
class _Flight:
    """A step on its way through the layers in one micro-batch."""

    step: int
    depends_on: frozenset[int]
    turn: int  # of its start or its latest dispatch; lower is older
    next_layer: int = 0  # the attention halves of all layers below have run
    awaiting: set[int] = field(default_factory=set)  # expert nodes that have yet to reply


class PingPong:
    """The micro-batches of one attention node, and which of them runs next.

    The node's loop is: ask `next()`; combine the replies of that micro-batch, run its attention
    half up to the next layer with experts, dispatch; report `dispatched()`, or `finished()` after
    the last layer. Replies are reported with `replied()` as they come.

    A step may depend on steps with lower numbers, as the chunks of one prompt do: it runs the
    attention half of a layer only after they have run theirs, and it finishes after them.
    """

    def __init__(self, num_micro_batches: int, num_layers: int) -> None:
        self.num_micro_batches = num_micro_batches
        self.num_layers = num_layers
        self._flights: dict[int, _Flight] = {}
        self._turns = 0

    def start(self, micro_batch: int, step: int, depends_on: Iterable[int] = ()) -> None:
        """An idle micro-batch begins a step; `depends_on` are step numbers.

        Those no longer in flight have finished. One that was abandoned must not be named: its
        dependents were abandoned with it.
        """
        dependencies = frozenset(depends_on)
        assert 0 <= micro_batch < self.num_micro_batches, f"no micro-batch {micro_batch}"
        assert micro_batch not in self._flights, f"micro-batch {micro_batch} is not idle"
        assert all(f.step != step for f in self._flights.values()), f"step {step} is in flight"
        assert all(d < step for d in dependencies), f"step {step} depends on {sorted(dependencies)}"
        self._flights[micro_batch] = _Flight(step, dependencies, self._next_turn())

    def next(self) -> int | None:
        """The micro-batch to run: has all its replies, may go before its dependents, oldest."""
        ready = [mb for mb, flight in self._flights.items() if self._may_run(flight)]
        return min(ready, key=lambda mb: self._flights[mb].turn, default=None)

    def dispatched(self, micro_batch: int, layer: int, awaiting: Iterable[int]) -> None:
        """The attention half up to `layer` has run; these expert nodes will reply.

        With none of them (no token chose an expert, or all experts are here) it is ready again.
        """
        flight = self._running(micro_batch)
        assert flight.next_layer <= layer < self.num_layers, (
            f"micro-batch {micro_batch} dispatched layer {layer}, "
            f"not one of {flight.next_layer}..{self.num_layers - 1}"
        )
        flight.next_layer = layer + 1
        flight.awaiting = set(awaiting)
        flight.turn = self._next_turn()

    def replied(self, micro_batch: int, layer: int, expert_node: int) -> None:
        """A reply came in. Raises ProtocolError if nobody waits for it."""
        flight = self._flights.get(micro_batch)
        expected = flight and flight.next_layer - 1 == layer and expert_node in flight.awaiting
        if not flight or not expected:
            raise ProtocolError(
                f"unexpected reply of expert node {expert_node} for layer {layer} of micro-batch "
                f"{micro_batch}, which is {self._describe(micro_batch)}"
            )
        flight.awaiting.remove(expert_node)

    def finished(self, micro_batch: int) -> None:
        """The step has run its last layer; the micro-batch is idle."""
        self._running(micro_batch)
        del self._flights[micro_batch]

    def abandoned(self, micro_batch: int) -> tuple[int, ...]:
        """End the step of `micro_batch` unfinished, and with it all that depend on it.

        Returns the micro-batches that this made idle, by step number: `micro_batch` first. No
        dependent can have finished before, so these are all.
        """
        ended = [micro_batch]
        steps = {self._flights[micro_batch].step}
        # Dependencies have lower numbers, so one pass in that order finds the indirect ones too.
        for other, flight in sorted(self._flights.items(), key=lambda item: item[1].step):
            if flight.depends_on & steps:
                steps.add(flight.step)
                ended.append(other)
        for other in ended:
            del self._flights[other]
        return tuple(ended)

    def idle(self) -> tuple[int, ...]:
        """The micro-batches without a step."""
        return tuple(mb for mb in range(self.num_micro_batches) if mb not in self._flights)

    def awaiting(self, micro_batch: int) -> frozenset[int]:
        """The expert nodes whose replies this micro-batch still needs."""
        flight = self._flights.get(micro_batch)
        return frozenset(flight.awaiting) if flight else frozenset()

    def next_layer(self, micro_batch: int) -> int:
        """The first layer whose attention half the step of this micro-batch has not run."""
        return self._flights[micro_batch].next_layer

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns

    def _may_run(self, flight: _Flight) -> bool:
        # All steps visit the same layers, so a dependency that is further on has run the next one.
        behind = (
            other.next_layer <= flight.next_layer
            for other in self._flights.values()
            if other.step in flight.depends_on
        )
        return not flight.awaiting and not any(behind)

    def _running(self, micro_batch: int) -> _Flight:
        flight = self._flights.get(micro_batch)
        assert flight is not None, f"micro-batch {micro_batch} is idle"
        assert self._may_run(flight), (
            f"micro-batch {micro_batch} had no turn, it is {self._describe(micro_batch)}"
        )
        return flight

    def _describe(self, micro_batch: int) -> str:
        flight = self._flights.get(micro_batch)
        if flight is None:
            return "idle"
        if flight.awaiting:
            nodes = ", ".join(map(str, sorted(flight.awaiting)))
            return f"awaiting layer {flight.next_layer - 1} from expert nodes {nodes}"
        return f"about to run layer {flight.next_layer}"


def min_micro_batches(t_f: float, t_c: float) -> int:
    """The least m for which nobody stalls: m T_f >= 2 (T_f + T_c). Times in seconds, t_f > 0.

    A condition, not the rule for choosing m: see `choose_micro_batches`.
    """
    if not (t_f > 0 and t_c >= 0):
        raise ConfigError(f"stage times must be t_f > 0 and t_c >= 0 seconds, got {t_f} and {t_c}")
    return math.ceil(2 * (1 + t_c / t_f) * (1 - ROUNDING))


def layer_period(t_a: float, t_e: float, t_c: float, m: int) -> float:
    """Seconds between two layers of one micro-batch: max(m T_f, T_a + T_e + 2 T_c).

    The busier side sets the pace, unless there are too few micro-batches to keep it busy; then
    the round trip of a single one does.
    """
    return max(m * max(t_a, t_e), t_a + t_e + 2 * t_c)


def iteration_bounds(
    t_a: float, t_e: float, t_c: float, m: int, layers: int
) -> tuple[float, float]:
    """Seconds that one micro-batch takes for all layers of one step, (least, most).

    (T_a + T_e + 2 T_c) + m T_f (L - 1) <= T_iter <= m T_f L, where m T_f >= 2 (T_f + T_c).
    """
    full = m * max(t_a, t_e)
    return t_a + t_e + 2 * t_c + full * (layers - 1), full * layers


def total_time(t_a: float, t_e: float, t_c: float, m: int, layers: int) -> float:
    """Seconds until all m micro-batches have passed all layers once, from a standing start.

    (T_a + T_e + 2 T_c) + T_f (m L - 1), where m T_f >= 2 (T_f + T_c).
    """
    return t_a + t_e + 2 * t_c + max(t_a, t_e) * (m * layers - 1)


SpanKind = Literal["attention", "dispatch", "expert", "combine"]


@dataclass(frozen=True)
class Span:
    """What one micro-batch does in one layer from `start` to `end`, in seconds."""

    micro_batch: int
    layer: int
    kind: SpanKind
    start: float
    end: float


def predicted_timeline(t_a: float, t_e: float, t_c: float, m: int, layers: int) -> tuple[Span, ...]:
    """One step of m micro-batches over all layers, one attention and one expert node.

    Holds for any m, also where the closed formulas don't. `dispatch` and `combine` are the two
    transfers. The spans come by layer, then by micro-batch, then by time.
    """
    return tuple(_timeline(t_a, t_e, t_c, m, layers))


def _timeline(t_a: float, t_e: float, t_c: float, m: int, layers: int) -> Iterator[Span]:
    attention_free = expert_free = 0.0
    replied = [0.0] * m
    # Equal costs and first come, first served on both sides: the micro-batches never overtake.
    for layer in range(layers):
        for mb in range(m):
            start = max(attention_free, replied[mb])
            attention_free = start + t_a
            arrived = attention_free + t_c
            served = max(expert_free, arrived)
            expert_free = served + t_e
            replied[mb] = expert_free + t_c
            yield Span(mb, layer, "attention", start, attention_free)
            yield Span(mb, layer, "dispatch", attention_free, arrived)
            yield Span(mb, layer, "expert", served, expert_free)
            yield Span(mb, layer, "combine", expert_free, replied[mb])


@dataclass(frozen=True)
class Curve:
    """Measured seconds by rows, straight lines between and beyond the points, never negative."""

    points: tuple[tuple[int, float], ...]  # (rows, seconds), rows strictly increasing

    def __post_init__(self) -> None:
        rows = [point[0] for point in self.points]
        if not rows or any(a >= b for a, b in pairwise(rows)):
            raise ConfigError(f"a profile needs points with increasing rows, got rows {rows}")
        for at, seconds in self.points:
            if not (math.isfinite(seconds) and seconds >= 0):
                raise ConfigError(f"a profile has {seconds} seconds at {at} rows")

    def at(self, rows: float) -> float:
        """Seconds that `rows` rows take."""
        if len(self.points) == 1:
            return self.points[0][1]
        segments = list(pairwise(self.points))
        fitting = (s for s in segments if rows <= s[1][0])
        (x0, y0), (x1, y1) = next(fitting, segments[-1])
        return max(0.0, y0 + (y1 - y0) * (rows - x0) / (x1 - x0))


@dataclass(frozen=True)
class StageProfile:
    """T_a, T_e and T_c as measured on this deployment.

    Rows are the tokens of one attention node's micro-batch; the experts' and the transfers' points
    are measured with every attention node sending that many.
    """

    attention: Curve
    expert: Curve
    transfer: Curve


@dataclass(frozen=True)
class Prediction:
    """What splitting a batch into `micro_batches` is expected to give. Times in seconds."""

    micro_batches: int
    rows: float  # of one micro-batch
    t_a: float
    t_e: float
    t_c: float
    period: float  # of one layer, for the whole batch
    throughput: float  # rows a second through one layer


@dataclass(frozen=True)
class Choice:
    """The m to use, and the predictions for every m that were compared."""

    micro_batches: int
    predictions: tuple[Prediction, ...]


def choose_micro_batches(profile: StageProfile, batch: int, max_micro_batches: int) -> Choice:
    """The m in 1..max_micro_batches with the largest predicted throughput of `batch` tokens.

    m micro-batches pass a layer in `layer_period(T_a(b/m), T_e(b/m), T_c(b/m), m)`. Splitting
    reads the experts' weights m times, which the profile shows as the part of T_e(b/m) that does
    not shrink with the rows. Of equal predictions the smaller m is taken; those beyond the batch
    cannot all be used and so predict what m = batch does.
    """
    if batch < 1 or max_micro_batches < 1:
        raise ConfigError(
            f"batch and max_micro_batches must be at least 1, got {batch} and {max_micro_batches}"
        )
    predictions = tuple(_predict(profile, batch, m) for m in range(1, max_micro_batches + 1))
    best = max(p.throughput for p in predictions)
    chosen = next(p for p in predictions if p.throughput >= best * (1 - ROUNDING))
    return Choice(chosen.micro_batches, predictions)


def _predict(profile: StageProfile, batch: int, m: int) -> Prediction:
    used = min(m, batch)
    rows = batch / used
    t_a, t_e, t_c = (
        curve.at(rows) for curve in (profile.attention, profile.expert, profile.transfer)
    )
    period = layer_period(t_a, t_e, t_c, used)
    if period <= 0:
        raise ConfigError(
            f"the profile predicts that {rows:g} rows take no time at all; measure it at fewer rows"
        )
    return Prediction(m, rows, t_a, t_e, t_c, period, batch / period)
