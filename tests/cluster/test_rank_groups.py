"""The road between ranks on GPUs, between real processes: gloo's collectives in place of NCCL's,
over a device that is the host's memory."""

import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Process
from os import kill

import pytest
import torch
from torch import Tensor

from megainfer.device.host import HostEvent
from megainfer.errors import NodeDied
from megainfer.launch.ranks.seats import FollowingSeat, LeadingSeat, RankSeats
from megainfer.ranks import collectives, group
from megainfer.ranks.group import FollowingGroup, LeadingGroup
from megainfer.ranks.half import Work
from megainfer.ranks.layout import HalfLayout, RowsLayout, meeting_offsets
from megainfer.ranks.meeting import MeetingStore
from megainfer.ranks.road import FollowingRoad, Given, LeadingRoad
from megainfer.ranks.rows import FollowingRows, LeadingRows
from megainfer.ranks.shared import Shared
from tests.support.fake_groups import PretendGpu
from tests.support.m2n_cluster import fork

RANKS = 4
ROWS = RowsLayout(RANKS, rows=6, hidden_size=8, top_k=2, dtype="float32")
HALF = HalfLayout(
    RANKS,
    rows=5,
    hidden_size=8,
    logit_rows=3,
    vocabulary=7,
    sequences=2,
    blocks=3,
    dtype="bfloat16",
)
SCALES = {1: 1e8, 2: -1e8, 3: 1.0}
"""Of ranks: another order of additions gives another sum."""
LOGITS = {1: 6, 2: 7, 3: 5}
"""Tokens that each of the others has."""
TURN_SECONDS = 10.0


class Ranks:
    """Rank 0's road, and the other ranks' processes."""

    def __init__(
        self, layout: RowsLayout | HalfLayout, follow: Callable[[FollowingRoad, int], None]
    ) -> None:
        seats = RankSeats(layout)
        self.others: list[Process] = [
            fork(_follow, seats.following(rank), follow) for rank in range(1, RANKS)
        ]
        road = seats.leading.road("node 7", 0.0, PretendGpu())
        assert isinstance(road, LeadingGroup)
        self.road: LeadingRoad = road
        self.seat: LeadingSeat[RowsLayout | HalfLayout] = seats.leading

    def close(self) -> None:
        self.road.close()
        for other in self.others:
            other.kill()
            other.join(TURN_SECONDS)


def _follow(
    seat: FollowingSeat[RowsLayout | HalfLayout], follow: Callable[[FollowingRoad, int], None]
) -> None:
    road = seat.road(0.0, PretendGpu())
    assert isinstance(road, FollowingGroup)
    road.done()  # loading
    while True:
        follow(road, seat.rank)


@pytest.fixture
def new_ranks():
    made: list[Ranks] = []

    def make(*given) -> Ranks:
        made.append(Ranks(*given))
        return made[-1]

    yield make
    for ranks in made:
        ranks.close()


def expert(hidden: Tensor, ids: Tensor, weights: Tensor, rank: int) -> Tensor:
    """What a rank makes of rows: other things of other rows, ids and weights."""
    chosen = (ids * weights).sum(-1, keepdim=True)
    return (SCALES[rank] * (1 + hidden.float() + chosen)).to(hidden.dtype)


def follow_rows(layout: RowsLayout) -> Callable[[FollowingRoad, int], None]:
    def follow(road: FollowingRoad, rank: int) -> None:
        rows = FollowingRows(road, layout, rank)
        if (order := rows.wait(TURN_SECONDS)) is not None:
            rows.result(order.rows).copy_(expert(*rows.given(order.rows), rank))
            rows.done()

    return follow


def messages_of(sizes: tuple[int, ...], seed: int, dtype: torch.dtype) -> list[list[Tensor]]:
    """Hidden, ids and weights, of each message."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(size, 8, generator=generator).to(dtype) for size in sizes],
        [torch.randint(4, (size, 2), generator=generator, dtype=torch.int32) for size in sizes],
        [torch.rand(size, 2, generator=generator) for size in sizes],
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_reach_all_and_sums_are_in_the_order_of_ranks(new_ranks, dtype: str) -> None:
    layout, kind = replace(ROWS, dtype=dtype), getattr(torch, dtype)
    ranks = new_ranks(layout, follow_rows(layout))
    ranks.road.await_loaded()
    leading = LeadingRows(ranks.road, layout)
    for layer, sizes in enumerate([(2, 3), (1,), (6,), (0, 4), (0,)]):
        messages = messages_of(sizes, layer, kind)
        leading.begin(layer, *messages)
        outs = [hidden.clone() for hidden in messages[0]]
        leading.add_to(outs)
        for out, *message in zip(outs, *messages, strict=True):
            total = message[0].float()
            for rank in SCALES:
                total = total + expert(*message, rank).float()
            assert torch.equal(out, total.to(kind))


def test_what_rank_0_fails_to_add_is_dropped(new_ranks) -> None:
    ranks = new_ranks(ROWS, follow_rows(ROWS))
    ranks.road.await_loaded()
    leading = LeadingRows(ranks.road, ROWS)
    leading.begin(0, *messages_of((3,), 0, torch.float32))
    ranks.road.check()
    messages = messages_of((2,), 1, torch.float32)
    leading.begin(1, *messages)
    outs = [torch.zeros(2, 8)]
    leading.add_to(outs)
    message = [each[0] for each in messages]
    first, second, third = (expert(*message, rank) for rank in SCALES)
    assert torch.equal(outs[0], first + second + third)


def logits_of(x: Tensor, rank: int) -> Tensor:
    return x[:, :1].float() + torch.arange(LOGITS[rank]) + 100 * rank


def follow_half(road: FollowingRoad, rank: int) -> None:
    """Tokens' numbers, times its scale; as many logits as it has tokens."""
    order = road.wait(TURN_SECONDS)
    if order is None:
        return
    work, rows = Work(order[0]), order[2]
    if work is Work.STEP:
        assert road.given(HALF.step, rows).tolist() == [*range(rows)]
    elif work is Work.EMBED:
        given = road.given(HALF.token_ids, rows)
        road.result(HALF.result(rank), rows).copy_(rank * given[:, None])
    else:
        given = road.given(HALF.residual, rows)
        made = HALF.logits(rank, LOGITS[rank])
        road.result(made, rows).copy_(logits_of(given, rank))
    road.done()


def test_steps_are_told_on_the_host_and_logits_are_as_many_as_each_has(new_ranks) -> None:
    ranks = new_ranks(HALF, follow_half)
    road = ranks.road
    road.await_loaded()
    results = [HALF.result(rank) for rank in SCALES]
    logits = [HALF.logits(rank, count) for rank, count in LOGITS.items()]
    for rows in (1, 3):
        road.begin((Work.STEP, 0, 9, 0), [Given(HALF.step, [torch.arange(9)])])
        tokens = torch.arange(10, 10 + rows)
        road.begin((Work.EMBED, 0, rows, 0), [Given(HALF.token_ids, [tokens])], results)
        for rank, found in enumerate(road.results(), 1):
            assert torch.equal(found, (rank * tokens)[:, None].expand(rows, 8).bfloat16())
        x = torch.arange(rows * 16, dtype=torch.bfloat16).view(rows, 16)[:, ::2]  # apart in memory
        road.begin((Work.LOGITS, 0, rows, 0), [Given(HALF.residual, [x])], logits)
        for rank, found in enumerate(road.results(), 1):
            assert torch.equal(found, logits_of(x, rank))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_ends_is_the_nodes_end_within_the_bound(new_ranks, monkeypatch, end) -> None:
    """Who is killed is known by its connections, who is stopped by the bound."""
    monkeypatch.setattr(collectives, "ANSWER_SECONDS", 3.0)
    ranks = new_ranks(ROWS, follow_rows(ROWS))
    ranks.road.await_loaded()
    leading = LeadingRows(ranks.road, ROWS)
    compute(leading)
    ranks.road.orders.await_all()
    pid = ranks.others[1].pid
    assert pid is not None
    kill(pid, end)
    with pytest.raises(NodeDied, match=r"did not (arrive|reach all ranks)"):
        compute(leading)


def compute(leading: LeadingRows) -> None:
    leading.begin(1, *messages_of((2,), 1, torch.float32))
    leading.add_to([torch.zeros(2, 8)])


def test_a_device_that_does_not_get_on_is_noticed_by_who_waits_for_nothing(
    new_ranks, monkeypatch
) -> None:
    ranks = new_ranks(ROWS, follow_rows(ROWS))
    ranks.road.await_loaded()
    leading = LeadingRows(ranks.road, ROWS)
    compute(leading)
    ranks.road.check()
    monkeypatch.setattr(ranks.road._watch._event, "done", lambda: False, raising=False)
    monkeypatch.setattr(group, "ANSWER_SECONDS", 0.0)
    compute(leading)
    with pytest.raises(NodeDied, match="the ranks of node 7 have not got on for 0 s"):
        ranks.road.check()


class EventsInOrder(HostEvent):
    """Of a stream that stops after the first `until` times it is recorded."""

    def __init__(self, until: int) -> None:
        self._until, self.recorded = until, 0

    def record(self) -> None:
        self.recorded += 1

    def done(self) -> bool:
        return self.recorded <= self._until


def test_a_device_that_stops_later_than_at_what_was_looked_at_is_noticed(
    new_ranks, monkeypatch
) -> None:
    """Of what was given behind an event, another tells; of nothing more, none does."""
    ranks = new_ranks(ROWS, follow_rows(ROWS))
    ranks.road.await_loaded()
    leading = LeadingRows(ranks.road, ROWS)
    event = EventsInOrder(until=1)
    monkeypatch.setattr(ranks.road._watch, "_event", event)
    monkeypatch.setattr(group, "ANSWER_SECONDS", 0.0)
    compute(leading)
    ranks.road.check()
    ranks.road.check()
    assert event.recorded == 1
    event.recorded = 0
    compute(leading)
    compute(leading)
    ranks.road.check()
    assert event.recorded == 2
    with pytest.raises(NodeDied, match="the ranks of node 7 have not got on for 0 s"):
        ranks.road.check()


# --- where they meet ------------------------------------------------------------------------------


def stores_of(ranks: int, seconds: float) -> list[MeetingStore]:
    shared = Shared.create(replace(ROWS, ranks=ranks))
    parts = meeting_offsets(ranks, shared.layout.total_bytes)
    return [MeetingStore(shared.memory, parts, rank, seconds) for rank in range(ranks)]


def test_what_one_sets_all_get_in_any_order() -> None:
    first, second, third = stores_of(3, TURN_SECONDS)
    first.set("a", b"1")
    third.set("b", "two")
    third.set("c", bytes(1000))
    assert [second.get(key) for key in ("c", "b", "a")] == [bytes(1000), b"two", b"1"]
    second.set("a", b"later")
    assert first.check(["a", "b", "c"])
    assert not first.check(["d"])
    third.wait(["a", "c"])


def test_what_nobody_sets_is_waited_for_within_the_bound() -> None:
    store, _ = stores_of(2, 0.01)
    with pytest.raises(NodeDied, match=r"no rank has said 'id' for 0\.01 s"):
        store.get("id")
