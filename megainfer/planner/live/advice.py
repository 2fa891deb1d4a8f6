"""What to make of a running instance's measured terms, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from megainfer.planner.live.changes import Change, changes, limits
from megainfer.planner.live.expected import Outlook, Profiled, Proportional
from megainfer.planner.live.scrape import Scrape, window_between
from megainfer.planner.live.work import Measured, measured

FEW = 3
"""Changes that are told."""
BUSY = 0.1
"""Idle shares below this count as none."""


@dataclass(frozen=True, slots=True)
class Advice:
    """now: None while nothing is generated. waiting: requests that wait. changes: best first.
    guessed: nothing is known of how terms change with rows, so gains are cautious. together: both
    roles are one process."""

    now: Measured | None
    waiting: float
    changes: tuple[Change, ...] = ()
    guessed: bool = False
    together: bool = False

    def lines(self) -> Iterator[str]:
        """For a reader."""
        if self.now is None:
            yield "Nothing is being generated: send it load, and ask again."
            return
        yield from _terms(self.now)
        yield _who_waits(self.now)
        if self.together:
            yield "Both roles are one process; start it with --attn-gpus and --ffn-gpus to compare."
            return
        if not self.waiting:
            yield "No request waits: more nodes would serve more only if there were more requests."
        for change in self.changes[:FEW]:
            yield _change(change, self.now)
        if self.changes:
            yield "That is so where nodes are like these, each on hardware of its own."
        else:
            yield "No other number of nodes or micro-batches near these is expected to do better."
        if self.guessed:
            yield (
                "These gains are cautious: the server measured no curves at its start, as it does "
                "with --micro-batches auto."
            )


def advise(first: Scrape, last: Scrape) -> Advice:
    """Of what was counted between these two."""
    now = measured(window_between(first, last))
    if now is None:
        return Advice(None, last.waiting)
    sends = now.terms.transfer > 0 or bool(last.stages)
    if not sends:
        return Advice(now, last.waiting, together=True)
    outlook: Outlook = Proportional(now.terms, now.load)
    profile = last.stages
    if profile is not None:
        outlook = Profiled(profile, now.load.attention, now.load.experts)
    # Without a measured profile roles may share their cores, and then never work at once.
    found = changes(now, outlook, other_turns=profile is not None)
    return Advice(now, last.waiting, tuple(found), guessed=profile is None)


def _terms(now: Measured) -> Iterator[str]:
    load, terms = now.load, now.terms
    yield (
        f"{_nodes(load.attention, 'attention')}, {_nodes(load.experts, 'expert')}, "
        f"{_count(load.micro_batches, 'micro-batch')} of {load.rows:.1f} sequences, contexts of "
        f"{load.context:.0f}: {now.generated:.0f} tokens/s, {_ms(terms.token)} between tokens"
    )
    yield (
        f"a layer takes T_a {_ms(terms.attention)}, T_e {_ms(terms.experts)}, "
        f"T_c {_ms(terms.transfer)}; a step beside its layers {_ms(terms.outside)}"
    )


def _who_waits(now: Measured) -> str:
    attention, experts = now.idle
    pace = {
        "attention": "attention sets the pace",
        "experts": "the experts set the pace",
        "latency": "neither role is always at work: each waits for the other's answers",
    }[limits(now)]
    idle = [
        f"{who} {share:.0%}"
        for who, share in (("attention is idle", attention), ("the experts are idle", experts))
        if share > BUSY
    ]
    return f"{pace}{'; ' if idle else ''}{', '.join(idle)}"


def _change(change: Change, now: Measured) -> str:
    load = now.load
    if change.micro_batches != load.micro_batches:
        what = f"--micro-batches {change.micro_batches}"
    elif change.attention != load.attention:
        what = _more(change.attention - load.attention, "attention")
    else:
        what = _more(change.experts - load.experts, "expert")
    return (
        f"{what} would give {change.speedup:.2f}x the tokens/s, {change.per_node:.2f}x a node, "
        f"with {_ms(change.token)} between tokens"
    )


def _more(nodes: int, role: str) -> str:
    """
    >>> _more(2, "attention"), _more(-1, "expert")
    ('two more attention nodes', 'one expert node fewer')
    """
    count = {1: "one", 2: "two"}.get(abs(nodes), str(abs(nodes)))
    plural = "s" if abs(nodes) > 1 else ""
    return (
        f"{count} more {role} node{plural}" if nodes > 0 else f"{count} {role} node{plural} fewer"
    )


def _nodes(count: int, role: str) -> str:
    return f"{count} {role} node{'s' if count > 1 else ''}"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'es' if count > 1 else ''}"


def _ms(seconds: float) -> str:
    """
    >>> _ms(0.0123456)
    '12.3 ms'
    """
    return f"{seconds * 1e3:.3g} ms"
