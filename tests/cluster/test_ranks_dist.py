"""The road between ranks of several hosts: sums, and what an end does when the other is gone."""

import errno
import gc
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest
import torch
import trustme

from megainfer.errors import NodeDied
from megainfer.m2n.dist.listening import TcpListener
from megainfer.m2n.host import meeting
from megainfer.ranks.dist.following import FollowingElsewhere
from megainfer.ranks.dist.leading import LeadingHosts
from megainfer.ranks.dist.line import patience_for
from megainfer.ranks.dist.meeting import Terms
from megainfer.ranks.layout import RowsLayout
from megainfer.ranks.memory import FollowingMemory
from megainfer.ranks.road import MESSAGE
from megainfer.ranks.rows import FollowingRows, LeadingRows, Order
from megainfer.ranks.shared import Shared
from tests.support.tls import issued

LAYOUT = RowsLayout(ranks=4, rows=6, hidden_size=8, top_k=2, dtype="float32")
PAIR = replace(LAYOUT, ranks=2)
TERMS = Terms("expert node 3", 1, "127.0.0.1", secrets.token_hex(32), patience=0.05)
SECONDS = 30.0
SCALES = {1: 1e8, 2: -1e8, 3: 1.0}
"""Another order of additions gives another sum."""


@contextmanager
def forked(main: Callable[[], None]) -> Iterator[int]:
    """A process that runs it, killed at the end if it still lives."""
    pid = os.fork()
    if pid == 0:
        try:
            gc.freeze()  # groups of earlier tests, whose threads are none here, would wait for them
            main()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def rows_of(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(4, (count, 2), generator=generator, dtype=torch.int32)
    hidden = torch.randn(count, 8, generator=generator)
    return hidden, ids, torch.rand(count, 2, generator=generator)


def compute(rows: FollowingRows, rank: int, order: Order) -> None:
    hidden, ids, weights = rows.given(order.rows)
    made = SCALES[rank] * (1 + hidden) + ids.sum(1, keepdim=True) + weights.sum(1, keepdim=True)
    rows.result(order.rows).copy_(made)


def expected(rank: int, rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    hidden, ids, weights = rows
    return SCALES[rank] * (1 + hidden) + ids.sum(1, keepdim=True) + weights.sum(1, keepdim=True)


def follow(
    listener: TcpListener, rank: int, layout: RowsLayout = LAYOUT, terms: Terms = TERMS
) -> None:
    """A rank of another host, until it is killed."""
    address = listener.address
    listener.close()
    road = FollowingElsewhere(Shared.create(layout), rank, terms, address)
    rows = FollowingRows(road, layout, rank)
    rows.done()
    while True:
        order = rows.wait(SECONDS)
        if order is not None and order.layer != MESSAGE:
            compute(rows, rank, order)
        rows.done()


@pytest.fixture
def listener() -> Iterator[TcpListener]:
    made = TcpListener.create("127.0.0.1")
    yield made
    made.close()


def test_sums_are_those_of_one_host(listener: TcpListener) -> None:
    """Rank 2 is on rank 0's host, the others aren't: of each number of rows, in any order."""
    shared = Shared.create(LAYOUT)

    def beside() -> None:
        rows = FollowingRows(FollowingMemory(shared, 2, 0.0), LAYOUT, 2)
        rows.done()
        while True:
            order = rows.wait(SECONDS)
            if order is not None and order.layer != MESSAGE:
                compute(rows, 2, order)
            rows.done()

    with forked(lambda: follow(listener, 1)), forked(beside), forked(lambda: follow(listener, 3)):
        road = LeadingHosts(shared, TERMS, [1, 3], listener)
        road.await_loaded(SECONDS)
        leading = LeadingRows(road, LAYOUT)
        for count in (1, 5, 6, 2, 2, 3, 1):
            parts = [rows_of(count)] if count < 3 else [rows_of(2), rows_of(count - 2)]
            leading.begin(count, *map(list, zip(*parts, strict=True)))
            outs = [hidden.clone() for hidden, _, _ in parts]
            leading.add_to(outs)
            for out, part in zip(outs, parts, strict=True):
                total = part[0].clone()
                for rank in (1, 2, 3):
                    total += expected(rank, part)
                assert torch.equal(out, total)
            road.message()
        road.close()


@pytest.mark.parametrize("moment", ["idle", "computing"])
def test_a_rank_that_dies_is_named(listener: TcpListener, moment: str) -> None:
    layout = PAIR
    reader, writer = os.pipe()

    def main() -> None:
        address = listener.address
        listener.close()
        road = FollowingElsewhere(Shared.create(layout), 1, TERMS, address)
        road.done()
        if moment == "computing":
            road.wait(SECONDS)
        os.write(writer, b"!")
        signal.pause()

    with forked(main) as pid:
        road = LeadingHosts(Shared.create(layout), TERMS, [1], listener)
        road.await_loaded(SECONDS)
        leading = LeadingRows(road, layout)
        rows = [[each] for each in rows_of(3)]
        if moment == "computing":
            leading.begin(0, *rows)
        os.read(reader, 1)
        os.kill(pid, signal.SIGKILL)

        def ask() -> None:
            if moment == "idle":
                leading.begin(0, *rows)
            leading.add_to([rows[0][0].clone()])

        with pytest.raises(NodeDied, match=r"^rank 1 of expert node 3 is lost: "):
            ask()
        road.close()
    os.close(reader)
    os.close(writer)


class RecordedPage:
    """`line.HasDue`, with all that it was set to."""

    def __init__(self, due: float) -> None:
        self.dues = [due]

    @property
    def due(self) -> float:
        return self.dues[-1]

    @due.setter
    def due(self, due: float) -> None:
        self.dues.append(due)


def test_while_another_host_is_waited_for_no_work_is_due(listener: TcpListener) -> None:
    """Rank 0's is afterwards, as much later; a rank's that tells of its end, too."""
    began = monotonic()
    page, theirs = RecordedPage(began), RecordedPage(0.0)
    reader, writer = os.pipe()

    def main() -> None:
        address = listener.address
        listener.close()
        road = FollowingElsewhere(Shared.create(PAIR), 1, TERMS, address, theirs)
        road.done()
        road.wait(SECONDS)
        theirs.due = began
        road.done()
        assert road.wait(SECONDS) is not None
        os.write(writer, repr(theirs.dues).encode())

    with forked(main):
        road = LeadingHosts(Shared.create(PAIR), TERMS, [1], listener, page=page)
        road.await_loaded(SECONDS)
        assert page.dues == [began]
        road.message()
        road.message()
        dues = json.loads(os.read(reader, 4096))
        assert dues[:3] == [0.0, began, 0.0]
        assert began < dues[3]
        with pytest.raises(NodeDied, match=r"^rank 1 of expert node 3 is lost: "):
            road.message()
        assert monotonic() >= page.due >= began + TERMS.patience
        assert page.dues[1::2] == [0.0] * (len(page.dues) // 2)
        assert page.dues[::2] == sorted(set(page.dues[::2]))
        road.close()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(("lease", "seconds"), [(0.0, 15.0), (5.0, 15.0), (60.0, 70.0)])
def test_who_has_lost_the_other_waits_longer_than_the_lease(lease: float, seconds: float) -> None:
    assert patience_for(lease) == seconds


def test_a_rank_that_stalls_is_named_within_the_bound(listener: TcpListener) -> None:
    """It has heard of the order, and stops."""
    layout = PAIR
    with forked(lambda: follow(listener, 1, layout)) as pid:
        road = LeadingHosts(Shared.create(layout), TERMS, [1], listener)
        road.await_loaded(SECONDS)
        os.kill(pid, signal.SIGSTOP)
        LeadingRows(road, layout).begin(0, *([each] for each in rows_of(1)))
        with pytest.raises(NodeDied, match=r"rank 1 of expert node 3 has not answered for 0\.1 s"):
            road._await_all(0.1)
        road.close()


def test_a_rank_hears_of_the_end_of_rank_0(listener: TcpListener) -> None:
    layout = PAIR

    def lead() -> None:
        road = LeadingHosts(Shared.create(layout), TERMS, [1], listener)
        road.await_loaded(SECONDS)

    with forked(lead):
        address = listener.address
        listener.close()
        road = FollowingElsewhere(Shared.create(layout), 1, TERMS, address)
        road.done()
        with pytest.raises(NodeDied, match=r"^rank 0 of expert node 3 is lost: "):
            road.wait(SECONDS)
        road._met.close()


def test_all_of_it_over_tls(listener: TcpListener, tmp_path: Path) -> None:
    """Whoever has none, and may have come first, holds up nobody."""
    terms = replace(TERMS, tls=issued(tmp_path, trustme.CA()))
    with (
        forked(lambda: follow(listener, 1, PAIR)),
        forked(lambda: follow(listener, 1, PAIR, terms)),
    ):
        road = LeadingHosts(Shared.create(PAIR), terms, [1], listener)
        road.await_loaded(SECONDS)
        leading = LeadingRows(road, PAIR)
        rows = rows_of(4)
        leading.begin(0, *([each] for each in rows))
        out = rows[0].clone()
        leading.add_to([out])
        assert torch.equal(out, rows[0] + expected(1, rows))
        road.close()


STRANGERS = {
    "key": (replace(TERMS, key=secrets.token_hex(32)), PAIR, "it has not proved that it has this"),
    "node": (replace(TERMS, node="expert node 4"), PAIR, 'it is a rank of "expert node 4, Rows'),
    "time": (replace(TERMS, incarnation=2), PAIR, "it is of incarnation 2 of its node, this is of"),
    "layout": (TERMS, replace(PAIR, rows=7), "rows=7"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_who_is_no_rank_of_the_node_is_sent_away(
    listener: TcpListener, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """One of another key, node, incarnation or layout."""
    terms, layout, said = STRANGERS[name]
    with forked(lambda: follow(listener, 1, layout, terms)):
        road = LeadingHosts(Shared.create(PAIR), TERMS, [1], listener)
        with pytest.raises(NodeDied, match=r"rank 1 of expert node 3 did not connect in time"):
            road.await_loaded(0.5)
        road.close()
    assert "expert node 3 let nobody in" in caplog.text
    assert said in caplog.text


def test_who_says_nothing_holds_nobody_up(
    listener: TcpListener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However many they are, and however long they may stay; nor does it when nobody could be let
    in for a while."""
    monkeypatch.setattr(meeting, "HANDSHAKE_SECONDS", 10 * SECONDS)
    accept, troubles = listener.accept, [OSError(errno.EMFILE, "too many open files")]

    def accept_later(deadline: float | None) -> socket.socket:
        if troubles:
            raise troubles.pop()
        return accept(deadline)

    monkeypatch.setattr(listener, "accept", accept_later)
    with ExitStack() as strangers:
        for _ in range(5):
            strangers.enter_context(socket.create_connection(listener.address))
        strangers.enter_context(forked(lambda: follow(listener, 1, PAIR)))
        road = LeadingHosts(Shared.create(PAIR), TERMS, [1], listener)
        road.await_loaded(SECONDS)
        road.close()
    assert "expert node 3 lets nobody in just now: [Errno 24]" in caplog.text


def test_a_rank_may_come_before_rank_0_is_at_its_door(listener: TcpListener) -> None:
    """Two of them: whoever has come is waiting for orders while others load."""
    reader, writer = os.pipe()
    layout = replace(PAIR, ranks=3)

    def late() -> None:
        os.read(reader, 1)
        follow(listener, 2, layout)

    with forked(lambda: follow(listener, 1, layout)), forked(late):
        road = LeadingHosts(Shared.create(layout), TERMS, [1, 2], listener)
        with road._arrived:
            assert road._arrived.wait_for(lambda: 1 not in road._missing, SECONDS)
        os.write(writer, b"!")
        road.await_loaded(SECONDS)
        road.message()
        road.begin((MESSAGE,))
        road.close()
    os.close(reader)
    os.close(writer)
