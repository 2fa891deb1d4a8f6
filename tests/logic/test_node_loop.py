"""A node's loop and its supervisor: told once in a while, asked, never held up."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from megainfer.errors import NodeDied
from megainfer.instruments.stage_clock import Span
from megainfer.launch.control import ChildLink, link_pair
from megainfer.launch.heartbeat import Page, Workload
from megainfer.launch.node_loop import SPANS_A_MESSAGE, run_until_stopped
from megainfer.messages.from_child import Entered, LinkLost, Spans, Stats
from megainfer.messages.message import Message
from megainfer.messages.supervision import ToChild
from megainfer.messages.to_child import Enter, GetSpans, GetStats, KeepSpans, Meet, Stop
from megainfer.topology import Membership, contiguous_placement, first_membership

WAIT_SECONDS = 10.0


class IdleUnit:
    """A node without work, whose spans are as many as it is told to keep."""

    def __init__(self) -> None:
        self.kept = 0
        self.closed = False
        self.entered: list[Membership] = []
        self.heard: list[ToChild] = []
        self.to_tell: list[Message] = []
        self._turn = threading.Event()

    def run_once(self) -> bool:
        return False

    def wait(self, timeout: float, fds: Sequence[int]) -> None:
        self._turn.wait(min(timeout, 0.01))

    def enter(self, membership: Membership) -> None:
        self.entered.append(membership)

    def hear(self, message: ToChild) -> None:
        self.heard.append(message)

    def news(self) -> Sequence[Message]:
        news, self.to_tell = self.to_tell, []
        return news

    def counters(self) -> dict[str, Any]:
        return {"node": {"kept": self.kept}}

    def keep_spans(self, count: int) -> None:
        self.kept = count

    def take_spans(self) -> dict[str, list[Span]]:
        return {"node": [Span("work", 0, layer, 0.0, 1.0) for layer in range(self.kept)]}

    def close(self) -> None:
        self.closed = True


@contextmanager
def looping(pulse_seconds: float | None) -> Iterator[tuple[ChildLink, IdleUnit]]:
    ours, theirs = link_pair()
    unit = IdleUnit()
    work = Workload(Page())
    thread = threading.Thread(target=run_until_stopped, args=(theirs, unit, work, pulse_seconds))
    thread.start()
    try:
        yield ours, unit
    finally:
        ours.send(Stop())
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive()
        assert unit.closed


def heard(link: ChildLink, kind: type[Any]) -> Any:
    while not isinstance(message := link.receive(WAIT_SECONDS), kind):
        assert message is not None, f"no {kind.__name__} came"
    return message


def test_counters_come_unasked_and_when_asked() -> None:
    with looping(0.02) as (link, _):
        assert [heard(link, Stats).ticket for _ in range(3)] == [None] * 3
        link.send(GetStats(7))
        while (stats := heard(link, Stats)).ticket is None:
            pass
        assert stats == Stats(7, {"node": {"kept": 0}})


def test_without_a_pulse_nothing_is_said_unasked() -> None:
    with looping(None) as (link, _):
        link.send(GetStats(1))
        assert heard(link, Stats).ticket == 1
        assert link.receive(0.1) is None


def test_many_spans_come_in_pieces_of_which_one_is_the_last() -> None:
    count = 2 * SPANS_A_MESSAGE + 1
    with looping(None) as (link, _):
        link.send(KeepSpans(count))
        link.send(GetSpans(3))
        pieces: list[Spans] = [heard(link, Spans) for _ in range(3)]
        assert [piece.last for piece in pieces] == [False, False, True]
        layers = [span.layer for piece in pieces for span in piece.spans]
        assert layers == list(range(count))
        link.send(KeepSpans(0))
        link.send(GetSpans(4))
        assert heard(link, Spans) == Spans(4, "node", [], last=True)


def test_whoever_reads_nothing_holds_nobody_up() -> None:
    message = Stats(None, {"node": {"filler": "x" * 50_000}})
    ours, theirs = link_pair()
    sent = 0
    while ours.offer(message):
        sent += 1
        assert sent < 1000, "the link has no bound"
    assert sent >= 1
    theirs.close()
    with pytest.raises(NodeDied):
        ours.offer(message)
    ours.close()


def test_a_node_goes_on_while_its_supervisor_reads_nothing() -> None:
    with looping(1e-6) as (link, unit):
        turns = threading.Event()
        unit.run_once = lambda: turns.set() or False  # type: ignore[method-assign, func-returns-value]
        for _ in range(100):
            turns.clear()
            assert turns.wait(WAIT_SECONDS), "it waits for its supervisor"
        link.send(GetStats(5))
        while (stats := heard(link, Stats)).ticket is None:
            pass
        assert stats.ticket == 5


def test_a_new_membership_reaches_the_node() -> None:
    membership = first_membership(2, contiguous_placement(4, 2, [0]))
    with looping(None) as (link, unit):
        link.send(Enter(membership))
        assert heard(link, Entered).epoch == membership.epoch
        assert unit.entered == [membership]


def test_what_is_for_the_node_alone_reaches_it_and_its_news_the_supervisor() -> None:
    with looping(None) as (link, unit):
        unit.to_tell = [LinkLost(3, 1)]
        assert heard(link, LinkLost) == LinkLost(3, 1)
        link.send(Meet(3, 2))
        link.send(GetStats(1))
        heard(link, Stats)
        assert unit.heard == [Meet(3, 2)]
