"""T_c as nodes measure it of each other: over their own ports, whichever their numbers."""

from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from megainfer.attention_node.transfer_profile import (
    ROUND_TRIPS,
    ROUND_TRIPS_ASLEEP,
    profile_transfer,
    profile_waking,
    sent_rows,
)
from megainfer.device import HOST
from megainfer.errors import NodeDied
from megainfer.expert_node.transfer_profile import answer_transfers
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Arrival, Rest
from megainfer.m2n.roads import PortOptions, Road, Seat, open_attention_port, open_expert_port
from tests.support.m2n_cluster import SECONDS, fork, fresh_token, join_all

SPIN = PortOptions(spin_seconds=1e-4)
ROWS = [1, 2, 5]


def geometry(num_attention: int, num_expert: int) -> Geometry:
    return Geometry(num_attention, num_expert, 3, 8, hidden_size=16, top_k=2, dtype="bfloat16")


def attention_node(token: str, shape: Geometry, index: int, told: Connection) -> None:
    port = open_attention_port(Road("shm", token, SPIN), Seat(shape, index, 1), SECONDS)
    measured = profile_transfer(port, shape, ROWS)
    waking = profile_waking(port, shape, SPIN.spin_seconds)
    port.rest(0)
    told.send((measured, waking, port.counters()))
    port.close()


def expert_node(token: str, shape: Geometry, index: int, told: Connection) -> None:
    port = open_expert_port(Road("shm", token, SPIN), Seat(shape, index, 1), SECONDS)
    answer_transfers(port, shape.num_attention)
    assert port.receive() == []  # nobody measures any more
    told.send(port.counters())
    port.close()


@pytest.mark.parametrize("numbers", [(1, 1), (2, 3), (3, 1)])
def test_every_attention_node_measures_and_every_expert_node_answers_all(numbers):
    shape, token = geometry(*numbers), fresh_token()
    ends = [Pipe(duplex=False) for _ in range(sum(numbers))]
    experts, attention = ends[: numbers[1]], ends[numbers[1] :]
    processes = [
        *(fork(expert_node, token, shape, i, theirs) for i, (_, theirs) in enumerate(experts)),
        *(fork(attention_node, token, shape, i, theirs) for i, (_, theirs) in enumerate(attention)),
    ]
    join_all(processes)
    trips = ROUND_TRIPS * len(ROWS) + 2 * ROUND_TRIPS_ASLEEP
    for measured, waking, counters in (ours.recv() for ours, _ in attention):
        assert [rows for rows, _ in measured] == ROWS
        assert all(seconds > 0 for _, seconds in measured)
        assert waking >= 0
        assert counters["messages_received"] == trips * shape.num_expert
    for counters in (ours.recv() for ours, _ in experts):
        assert counters["messages_sent"] == trips * shape.num_attention
        assert counters["dropped"] == 0


def test_rows_are_those_that_an_even_choice_sends():
    assert [sent_rows(16, geometry(1, nodes)) for nodes in (1, 2, 4)] == [16, 12, 7]
    assert sent_rows(1, geometry(1, 100)) == 1  # a message without rows gets no reply


class DeafPort:
    """One end whose peers are gone, or say nothing but `messages`."""

    device = HOST

    def __init__(self, lost: frozenset[int], messages: Iterator[list[Rest]]) -> None:
        self._lost = lost
        self._messages = messages

    def receive(self) -> list[Rest]:
        return next(self._messages)

    def dispatch(self, *_: object) -> None: ...

    def poll(self) -> list[Arrival]:
        return []

    def lost_peers(self) -> frozenset[int]:
        return self._lost


def test_one_that_dies_while_it_measures_is_named():
    port = DeafPort(frozenset({0, 1}), iter([[Rest(0, 0)], []]))
    with pytest.raises(NodeDied, match=r"attention nodes \[1\] went silent"):
        answer_transfers(port, num_attention=2)  # type: ignore[arg-type]
    with pytest.raises(NodeDied, match=r"expert nodes \[2\] are gone"):
        profile_transfer(DeafPort(frozenset({2}), iter([])), geometry(1, 3), ROWS)  # type: ignore[arg-type]
