"""What other numbers of nodes would give, by what a running instance measures."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megainfer.planner.formulas import ENOUGH_MICRO_BATCHES
from megainfer.planner.live.expected import Outlook
from megainfer.planner.live.terms import Load, Terms, pace_of
from megainfer.planner.live.work import Measured

MOST_MORE = 2
"""Nodes of a role that are added or taken away, at most."""
WORTH = 1.03
"""Gains below this are within what a prediction is wrong by."""


@dataclass(frozen=True, slots=True)
class Change:
    """Another number of nodes or micro-batches, each attention node having as many sequences in a
    micro-batch as now. speedup: tokens a second by those of now. per_node: the same by node, so
    that above 1 the nodes that are added earn more than those that are there. token: seconds
    between tokens."""

    attention: int
    experts: int
    micro_batches: int
    speedup: float
    per_node: float
    token: float


def changes(now: Measured, outlook: Outlook, other_turns: bool = True) -> list[Change]:
    """Those that are worth it, best first: more tokens a second, or as many with fewer nodes.

    outlook: how the terms change with the load; at the present load the measured ones hold, and
    elsewhere they are as many times larger or smaller as it says. other_turns: whether other
    numbers of micro-batches are looked at.
    """
    here = _seconds(now, now.load, outlook)
    found = [_change(now, load, outlook, here) for load in _neighbours(now.load, other_turns)]
    worth = [change for change in found if _is_worth(change, now.load)]
    return sorted(worth, key=lambda change: (change.per_node, change.speedup), reverse=True)


def scaled(now: Measured, load: Load, outlook: Outlook) -> Terms:
    """The measured terms as they would be under another load."""
    at, then = outlook.terms(now.load), outlook.terms(load)
    terms = now.terms
    attention, experts, transfer, outside = (
        measured * _ratio(new, old)
        for measured, new, old in (
            (terms.attention, then.attention, at.attention),
            (terms.experts, then.experts, at.experts),
            (terms.transfer, then.transfer, at.transfer),
            (terms.outside, then.outside, at.outside),
        )
    )
    return Terms.paced(attention, experts, transfer, outside, load)


def limits(now: Measured) -> str:
    """Which role sets the pace: "attention", "experts", or "latency" where both wait."""
    terms = now.terms
    pace = pace_of(terms.attention, terms.experts, terms.transfer, terms.outside, now.load)
    if pace.seconds == pace.attention:
        return "attention"
    return "experts" if pace.seconds == pace.experts else "latency"


def _neighbours(load: Load, other_turns: bool) -> Iterator[Load]:
    for more in range(-MOST_MORE, MOST_MORE + 1):
        if more and load.attention + more >= 1:
            yield replace(load, attention=load.attention + more)
        if more and load.experts + more >= 1:
            yield replace(load, experts=load.experts + more)
    for m in range(1, ENOUGH_MICRO_BATCHES + 1) if other_turns else ():
        # The same sequences in other numbers of turns, each with one at least.
        rows = load.rows * load.micro_batches / m
        if m != load.micro_batches and (rows >= 1 or m < load.micro_batches):
            yield replace(load, micro_batches=m, rows=rows)


def _change(now: Measured, load: Load, outlook: Outlook, here: float) -> Change:
    token = _seconds(now, load, outlook)
    speedup = load.batch / now.load.batch * here / token
    nodes, before = load.attention + load.experts, now.load.attention + now.load.experts
    return Change(
        load.attention,
        load.experts,
        load.micro_batches,
        speedup,
        speedup * before / nodes,
        now.terms.token * token / here,
    )


def _seconds(now: Measured, load: Load, outlook: Outlook) -> float:
    return scaled(now, load, outlook).token


def _is_worth(change: Change, load: Load) -> bool:
    if change.attention + change.experts < load.attention + load.experts:
        return change.per_node > WORTH and change.speedup > 1 / WORTH
    return change.speedup > WORTH


def _ratio(new: float, old: float) -> float:
    return new / old if old > 0 else 1.0
