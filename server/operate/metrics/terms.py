"""The plan's terms, as it expects them under the present load and as they are measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any

from prometheus_client.core import Metric

from megainfer.messages.message import Role
from megainfer.planner.live.expected import Outlook, Profiled
from megainfer.planner.live.terms import Terms
from megainfer.planner.live.work import NOW, Measured, NodeWork, Window, measured
from megainfer.planner.profiles import StageProfile
from server.operate.metrics.families import gauge
from server.operate.nodes import NodeBoard, NodeState

TERMS = tuple(each.name for each in fields(Terms))
Curve = Sequence[tuple[int, float]]


@dataclass(slots=True)
class Expectation:
    """outlook: None where nothing is known to expect anything from. profile: (rows, seconds) of
    each term as the start has measured them, of those that it has."""

    outlook: Outlook | None = None
    profile: Mapping[str, Curve] = field(default_factory=dict)

    def learn(self, profile: Mapping[str, Curve], attention: int, experts: int) -> None:
        """What the start of an instance with so many nodes has measured, if anything: where no
        hardware was described, that is what is expected."""
        self.profile = profile
        if profile and self.outlook is None:
            self.outlook = Profiled(StageProfile.of(profile), attention, experts)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of the latest second in which anything was generated. expected: None without an outlook."""

    now: Measured
    expected: Terms | None

    @property
    def rows(self) -> Iterator[tuple[str, float, float | None]]:
        """(term, measured, expected seconds) of those that were measured: without messages there is
        no transfer."""
        expected: Sequence[float | None] = [None] * len(TERMS)
        if self.expected is not None:
            expected = astuple(self.expected)
        for term, seconds, wanted in zip(TERMS, astuple(self.now.terms), expected, strict=True):
            if seconds > 0:
                yield term, seconds, wanted


def compare(board: NodeBoard, expectation: Expectation) -> Comparison | None:
    """None where nothing was generated between the last two times that nodes were heard."""
    now = measured(window_of(board))
    if now is None:
        return None
    outlook = expectation.outlook
    return Comparison(now, None if outlook is None else outlook.terms(now.load))


def window_of(board: NodeBoard) -> Window:
    """Between the last two times that the nodes that serve have told their counters."""
    attention, experts = (
        [node for node in board.of_role(role) if node.serves and node.counters]
        for role in (Role.ATTENTION, Role.EXPERT)
    )
    elapsed = [node.growth("clock_seconds") for node in attention]
    return Window(
        sum(elapsed) / len(elapsed) if elapsed else 0.0,
        tuple(map(_work, attention)),
        tuple(map(_work, experts)),
    )


def _work(node: NodeState) -> NodeWork:
    numbers = [name for name, value in node.counters.items() if isinstance(value, int | float)]
    grown = {name: node.growth(name) for name in numbers}
    rows = _step_rows(node.counters) - _step_rows(node.before)
    now = {name: float(node.counters.get(name, 0)) for name in NOW}
    return NodeWork({**grown, "step_rows": rows}, now)


def _step_rows(counters: Any) -> float:
    """Over all steps."""
    told = counters.get("step_tokens")
    return 0.0 if told is None else float(told["total"])


def term_families(model: str, board: NodeBoard, expectation: Expectation) -> Iterator[Metric]:
    """Of the latest second; without samples while nothing is generated."""
    found = compare(board, expectation)
    rows = [] if found is None else list(found.rows)
    labels = ("model_name", "term")
    yield gauge(
        "measured_seconds",
        "A term of the plan, measured over the latest second.",
        labels,
        [((model, term), seconds) for term, seconds, _ in rows],
    )
    yield gauge(
        "predicted_seconds",
        "The same term as the plan expects it under the load of that second.",
        labels,
        [((model, term), wanted) for term, _, wanted in rows if wanted is not None],
    )
    yield gauge(
        "predicted_drift_ratio",
        "What was measured, by what was expected.",
        labels,
        [((model, term), seconds / wanted) for term, seconds, wanted in rows if wanted],
    )
    yield gauge(
        "predicted_tokens_per_second",
        "Tokens generated a second as the plan expects them under that load.",
        ("model_name",),
        _rates(model, found),
    )
    yield gauge(
        "profiled_seconds",
        "A term as the start has measured it, by rows of an attention node's micro-batch.",
        ("model_name", "term", "rows"),
        [
            ((model, term, str(size)), seconds)
            for term, curve in expectation.profile.items()
            for size, seconds in curve
        ],
    )


def _rates(model: str, found: Comparison | None) -> list[tuple[Sequence[str], float]]:
    if found is None or found.expected is None or not found.expected.token:
        return []
    return [((model,), found.now.load.batch / found.expected.token)]
