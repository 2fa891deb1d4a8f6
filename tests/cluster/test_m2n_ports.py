"""Both ends of M2N over both transports, against the reference."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part, Port, Rest
from megainfer.m2n.reference import (
    Expert,
    ExpertChoices,
    make_parts,
    marked_tokens,
    moe,
    moe_without_nodes,
)
from megainfer.m2n.roads import ROADS, PortOptions
from megainfer.m2n.slotted import native_library
from tests.support import twin_road
from tests.support.m2n_cluster import (
    SECONDS,
    Cluster,
    affine_expert,
    arrivals_of,
    local_cluster,
    padded,
    random_routing,
    serve_all,
    shm_cluster,
    spread,
)
from tests.support.settled_road import settled_cluster
from tests.support.twin_road import TWIN

Opened = Callable[[Geometry], AbstractContextManager[Cluster]]
HIDDEN, TOP_K, CAPACITY = 8, 2, 6


PYTHON, NATIVE = PortOptions(mover="plain"), PortOptions(mover="native")
BRISK = PortOptions(spin_seconds=1e-4)
SPINNING = PortOptions(spin_seconds=1e-4, mover="native")
built = pytest.mark.skipif(not native_library.is_built(), reason="M2N is not built")


@pytest.fixture(
    params=[
        pytest.param(partial(local_cluster, mover="plain"), id="local"),
        pytest.param(partial(shm_cluster, attention=PYTHON, expert=PYTHON), id="shm"),
        pytest.param(partial(local_cluster, mover="native"), id="native local", marks=built),
        pytest.param(
            partial(shm_cluster, attention=NATIVE, expert=NATIVE), id="native shm", marks=built
        ),
        pytest.param(
            partial(shm_cluster, attention=SPINNING, expert=SPINNING),
            id="native shm, spinning",
            marks=built,
        ),
        pytest.param(
            partial(shm_cluster, attention=NATIVE, expert=PYTHON),
            id="native to python",
            marks=built,
        ),
        pytest.param(
            partial(shm_cluster, attention=PYTHON, expert=NATIVE),
            id="python to native",
            marks=built,
        ),
        pytest.param(settled_cluster, id="dist"),
        pytest.param(
            partial(shm_cluster, attention=PYTHON, expert=PYTHON, kind=TWIN), id="ipc's twin"
        ),
        pytest.param(
            partial(shm_cluster, attention=NATIVE, expert=NATIVE, kind=TWIN),
            id="ipc's twin, native",
            marks=built,
        ),
        pytest.param(
            partial(shm_cluster, attention=BRISK, expert=BRISK, kind=TWIN),
            id="ipc's twin, spinning",
        ),
    ]
)
def opened(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Opened:
    monkeypatch.setitem(ROADS, TWIN, twin_road.__name__)
    return request.param


def geometry_of(m: int = 1, n: int = 1, micro_batches: int = 1, dtype: str = "float32") -> Geometry:
    return Geometry(m, n, micro_batches, CAPACITY, HIDDEN, TOP_K, dtype)


def part_of(num_rows: int, hidden_row: int = 0) -> Part:
    rows = torch.arange(hidden_row, hidden_row + num_rows)
    choices = torch.zeros(num_rows, TOP_K)
    return Part(rows, choices.to(torch.int32), choices)


def tokens(count: int) -> torch.Tensor:
    return marked_tokens(count, HIDDEN, 0, torch.float32)


def skewed(
    num_tokens: int, homes: tuple[tuple[int, int], ...], experts: list[int]
) -> ExpertChoices:
    """Every token to the same experts."""
    ids = torch.tensor(experts).expand(num_tokens, TOP_K)
    return ExpertChoices(ids, torch.tensor([0.75, 0.25]).expand(num_tokens, TOP_K), homes)


def layer(
    cluster: Cluster, hiddens: list[torch.Tensor], routings: list[ExpertChoices], expert: Expert
) -> list[torch.Tensor]:
    """One layer of every micro-batch on every attention node, and what each got back.

    hiddens, routings: one an attention node, the same for all its micro-batches but their order.
    """
    geometry = cluster.geometry
    expected = {
        (i, n): part
        for i, routing in enumerate(routings)
        for n, part in enumerate(make_parts(routing, geometry.num_expert))
    }
    flying = []
    for micro_batch in range(geometry.micro_batches):
        for i, port in enumerate(cluster.attention):
            parts = make_parts(routings[i], geometry.num_expert)
            flying.append((i, port.dispatch(micro_batch, 5, hiddens[i], parts)))
    for n, port in enumerate(cluster.experts):
        port.wait(SECONDS)
        seen = serve_all(port, n, expert)
        assert len(seen) == geometry.num_attention * geometry.micro_batches
        for message in seen:
            check_message(message, hiddens[message.source], expected[message.source, n])
    results = []
    for i, port in enumerate(cluster.attention):
        port.wait(SECONDS)
        arrived = {(a.micro_batch, a.expert_node) for a in port.poll()}
        mine = [handle for j, handle in flying if j == i]
        assert arrived == {(h.micro_batch, n) for h in mine for n in h.awaiting}
        for handle in mine:
            results.append(torch.zeros_like(hiddens[i]))
            port.combine(handle, results[-1])
    return results


def check_message(message: Dispatch, hidden: torch.Tensor, part: Part) -> None:
    assert message.layer == 5
    assert message.num_rows == part.rows.numel()
    assert torch.equal(message.hidden, hidden[part.rows])
    assert torch.equal(message.local_ids, part.local_ids)
    assert torch.equal(message.weights, part.weights)


def check_against_reference(
    opened: Opened, geometry: Geometry, routings: list[ExpertChoices], expert: Expert
) -> None:
    dtype = getattr(torch, geometry.dtype)
    hiddens = [
        marked_tokens(routing.expert_ids.shape[0], HIDDEN, i, dtype)
        for i, routing in enumerate(routings)
    ]
    with opened(geometry) as cluster:
        for _ in range(2):  # slots are used again
            results = layer(cluster, hiddens, routings, expert)
    for index, result in enumerate(results):
        i = index // geometry.micro_batches
        assert torch.equal(result, moe(hiddens[i], routings[i], geometry.num_expert, expert))
        whole = moe_without_nodes(hiddens[i], routings[i], expert)
        tolerance = 1e-5 if geometry.dtype == "float32" else 2e-2
        torch.testing.assert_close(result.float(), whole, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_equals_the_reference(
    opened: Opened, m: int, n: int, micro_batches: int, dtype: str
) -> None:
    homes = spread(5, n)
    generator = torch.Generator().manual_seed(m * 100 + n * 10 + micro_batches)
    counts = [1, CAPACITY, 3][:m]  # a batch of one, a full one, one in between
    routings = [random_routing(count, TOP_K, homes, generator) for count in counts]
    geometry = geometry_of(m, n, micro_batches, dtype)
    check_against_reference(opened, geometry, routings, affine_expert(homes))


def test_all_tokens_to_one_expert_node(opened: Opened) -> None:
    homes = spread(6, 3)
    routings = [skewed(CAPACITY, homes, [1, 4])]  # both live on node 1
    check_against_reference(opened, geometry_of(1, 3), routings, affine_expert(homes))


@pytest.mark.parametrize("count", [0, 2, CAPACITY])
def test_padding_adds_nothing(opened: Opened, count: int) -> None:
    homes = spread(5, 2)
    routing = random_routing(count, TOP_K, homes, torch.Generator().manual_seed(count))
    with opened(geometry_of(n=2)) as cluster:
        attention = cluster.attention[0]
        parts = [padded(part, CAPACITY) for part in make_parts(routing, 2)]
        handle = attention.dispatch(0, 0, tokens(CAPACITY), parts)
        assert handle.awaiting == {0, 1}
        for node, port in enumerate(cluster.experts):
            port.wait(SECONDS)
            serve_all(port, node, affine_expert(homes))
        arrivals_of(attention, handle)
        out = torch.zeros(CAPACITY, HIDDEN)
        attention.combine(handle, out)
    assert torch.equal(out[:count], moe(tokens(count), routing, 2, affine_expert(homes)))
    assert not out[count:].any()


def test_two_choices_on_one_node_are_one_row() -> None:
    routing = skewed(1, spread(6, 3), [1, 4])
    parts = make_parts(routing, 3)
    assert [part.rows.tolist() for part in parts] == [[], [0], []]
    assert parts[1].local_ids.tolist() == [[0, 1]]
    assert parts[1].weights.tolist() == [[0.75, 0.25]]


def test_ports_are_ports(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention: AttentionPort = cluster.attention[0]
        expert: ExpertPort = cluster.experts[0]
        assert attention.lost_peers() == expert.lost_peers() == frozenset()


def test_the_reply_buffer_is_what_the_attention_node_reads(opened: Opened) -> None:
    """Zero copy: what is written there arrives, and nothing does before `reply`."""
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        handle = attention.dispatch(0, 0, tokens(2), [part_of(2)])
        (message,) = expert.receive()
        expert.reply_buffer(message).fill_(3.0)
        assert attention.poll() == []
        expert.reply_buffer(message)[0].fill_(4.0)
        expert.reply(message)
        arrivals_of(attention, handle)
        out = torch.ones(2, HIDDEN)
        attention.combine(handle, out)
        assert out[:, 0].tolist() == [5.0, 4.0]


def test_replies_in_bfloat16_add_to_float32(opened: Opened) -> None:
    with opened(geometry_of(dtype="bfloat16")) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        handle = attention.dispatch(0, 0, tokens(1).bfloat16(), [part_of(1)])
        (message,) = expert.receive()
        expert.reply_buffer(message).fill_(1.0)
        expert.reply(message)
        arrivals_of(attention, handle)
        out = torch.full((1, HIDDEN), 2.0**-10)
        attention.combine(handle, out)
        assert out.unique().tolist() == [1 + 2.0**-10]


def test_the_order_of_arrival_does_not_change_the_sum(opened: Opened) -> None:
    """2**24 + 1 + 1 depends on the order of adding in float32."""
    values, sums = [2.0**24, 1.0, 1.0], []
    for order in ([0, 1, 2], [2, 1, 0]):
        with opened(geometry_of(n=3)) as cluster:
            attention = cluster.attention[0]
            handle = attention.dispatch(0, 0, tokens(1), [part_of(1)] * 3)
            arrived = []
            for node in order:
                (message,) = cluster.experts[node].receive()
                cluster.experts[node].reply_buffer(message).fill_(values[node])
                cluster.experts[node].reply(message)
                arrived += [a.expert_node for a in attention.poll()]
            assert arrived == order
            sums.append(torch.zeros(1, HIDDEN))
            attention.combine(handle, sums[-1])
    assert torch.equal(*sums)
    assert sums[0].unique().tolist() == [2.0**24]  # in node order, each 1 is lost to rounding


def test_rest_and_header_only_messages_get_no_reply(opened: Opened) -> None:
    with opened(geometry_of(micro_batches=2)) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        handle = attention.dispatch(0, 7, tokens(1), [part_of(0)])
        attention.rest(1)
        assert handle.awaiting == frozenset()
        empty, rest = expert.receive()
        assert isinstance(empty, Dispatch)
        assert (empty.layer, empty.num_rows, empty.local_ids.shape) == (7, 0, (0, TOP_K))
        assert rest == Rest(source=0, micro_batch=1)
        with pytest.raises(ProtocolError, match="without rows gets no reply"):
            expert.reply(empty)
        out = torch.ones(1, HIDDEN)
        attention.combine(handle, out)
        assert torch.equal(out, torch.ones(1, HIDDEN))


def test_a_header_only_message_may_be_superseded_by_rows(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        attention.dispatch(0, 0, tokens(1), [part_of(0)])
        attention.dispatch(0, 1, tokens(1), [part_of(1)])
        (message,) = expert.receive()
        assert isinstance(message, Dispatch)
        assert (message.layer, message.num_rows) == (1, 1)


def test_an_error_comes_back_cut_to_the_slot(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        for text, arrived in (
            ("no such expert: é", "no such expert: é"),
            ("x" + "é" * 999, "x" + "é" * 511),
        ):
            handle = attention.dispatch(0, 3, tokens(1), [part_of(1)])
            (message,) = expert.receive()
            expert.reply_error(message, text)
            (arrival,) = arrivals_of(attention, handle)
            assert (arrival.layer, arrival.error) == (3, arrived)
            with pytest.raises(ProtocolError, match=r"\[\] have not replied, \[0\] have failed"):
                attention.combine(handle, torch.zeros(1, HIDDEN))


def test_one_row_too_many_is_refused(opened: Opened) -> None:
    with opened(geometry_of(n=2)) as cluster:
        attention = cluster.attention[0]
        parts = [part_of(CAPACITY), part_of(CAPACITY + 1)]
        with pytest.raises(ProtocolError, match="7 rows for expert node 1, a slot's capacity is 6"):
            attention.dispatch(0, 0, tokens(CAPACITY + 1), parts)
        assert cluster.experts[0].receive() == []  # nothing was sent
        attention.dispatch(0, 0, tokens(CAPACITY + 1), [part_of(CAPACITY, 1)] * 2)
        (message,) = cluster.experts[0].receive()
        assert torch.equal(message.hidden, tokens(CAPACITY + 1)[1:])


def test_misuse_is_named(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        port = cluster.attention[0]
        with pytest.raises(ProtocolError, match="micro-batch 1, there are 1"):
            port.dispatch(1, 0, tokens(1), [part_of(1)])
        with pytest.raises(ProtocolError, match="2 parts for 1 expert nodes"):
            port.dispatch(0, 0, tokens(1), [part_of(1)] * 2)
        with pytest.raises(ProtocolError, match=r"hidden is \[1, 9\].*agreed was \[T, 8\]"):
            port.dispatch(0, 0, torch.zeros(1, 9), [part_of(1)])
        with pytest.raises(ProtocolError, match=r"bfloat16, agreed was .* torch.float32"):
            port.dispatch(0, 0, tokens(1).bfloat16(), [part_of(1)])
        wrong = Part(torch.arange(1), torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3))
        with pytest.raises(ProtocolError, match=r"local ids \[1, 3\]"):
            port.dispatch(0, 0, tokens(1), [wrong])


def test_a_slot_is_not_rewritten_before_its_reply(opened: Opened) -> None:
    with opened(geometry_of(n=2)) as cluster:
        port = cluster.attention[0]
        handle = port.dispatch(0, 4, tokens(1), [part_of(1), part_of(0)])
        for again in (
            lambda: port.dispatch(0, 5, tokens(1), [part_of(0)] * 2),
            lambda: port.rest(0),
        ):
            with pytest.raises(ProtocolError, match=r"waits for expert nodes \[0\] at layer 4"):
                again()
        with pytest.raises(ProtocolError, match=r"nodes \[0\] have not replied"):
            port.combine(handle, torch.zeros(1, HIDDEN))


def test_a_handle_is_combined_once_and_before_the_next(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        port, out = cluster.attention[0], torch.zeros(1, HIDDEN)
        first = port.dispatch(0, 0, tokens(1), [part_of(0)])
        second = port.dispatch(0, 1, tokens(1), [part_of(0)])
        with pytest.raises(ProtocolError, match="layer 0 of micro-batch 0 is not in flight"):
            port.combine(first, out)
        port.combine(second, out)
        with pytest.raises(ProtocolError, match="layer 1 of micro-batch 0 is not in flight"):
            port.combine(second, out)


def test_a_new_epoch_frees_slots_and_drops_what_is_late(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        attention.dispatch(0, 0, tokens(1), [part_of(1)])
        (late,) = expert.receive()
        attention.set_epoch(1)
        expert.reply_buffer(late).fill_(9.0)
        expert.reply(late)  # the expert node does not know yet
        assert attention.poll() == []
        assert attention.counters()["dropped"] == 1

        handle = attention.dispatch(0, 0, tokens(1), [part_of(1)])
        expert.wait(SECONDS)
        assert expert.receive() == []  # parked
        expert.wait(0.0)  # its bell is silent now
        expert.set_epoch(1)
        expert.wait(1000.0)
        (message,) = expert.receive()
        expert.reply_buffer(message).fill_(1.0)
        expert.reply(message)
        arrivals_of(attention, handle)
        out = torch.zeros(1, HIDDEN)
        attention.combine(handle, out)
        assert out.unique().tolist() == [1.0]


def test_who_is_no_member_is_sent_nothing(opened: Opened) -> None:
    with opened(geometry_of(n=3)) as cluster:
        attention = cluster.attention[0]
        for port in (attention, *cluster.experts):
            port.set_epoch(1, (0, 2) if port is attention else (0,))
        with pytest.raises(ProtocolError, match="node 1, which is no member of epoch 1"):
            attention.dispatch(0, 0, tokens(1), [part_of(0), part_of(1), part_of(0)])
        handle = attention.dispatch(0, 0, tokens(2), [part_of(2), part_of(0), part_of(1)])
        assert handle.awaiting == {0, 2}
        assert [[m.num_rows for m in port.receive()] for port in cluster.experts] == [[2], [], [1]]
        attention.set_epoch(2)  # everybody again
        for port in cluster.experts:
            port.set_epoch(2)
        attention.rest(0)
        assert [port.receive() for port in cluster.experts] == [[Rest(0, 0)]] * 3
        attention.set_epoch(3, (1,))
        for port in cluster.experts:
            port.set_epoch(3)
        attention.rest(0)
        assert [port.receive() for port in cluster.experts] == [[], [Rest(0, 0)], []]


def test_a_reply_of_an_ended_epoch_is_not_sent(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        attention.dispatch(0, 0, tokens(2), [part_of(2)])
        (late,) = expert.receive()
        expert.set_epoch(1)
        assert expert.reply_buffer(late).shape == (2, HIDDEN)
        expert.reply(late)
        expert.reply_error(late, "too late")
        assert expert.counters()["dropped"] == 2
        assert attention.poll() == []


def test_epochs_only_grow(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        port = cluster.experts[0]
        port.set_epoch(3)
        port.set_epoch(3)
        with pytest.raises(ProtocolError, match="epoch 2 is older than 3"):
            port.set_epoch(2)


def test_counters(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        handle = attention.dispatch(0, 0, tokens(3), [part_of(3)])
        serve_all(expert, 0, lambda node, local, token: token)
        arrivals_of(attention, handle)
        sent = 64 + cluster.geometry.dispatch_bytes(3)
        received = 64 + cluster.geometry.reply_bytes(3)
        assert attention.counters() == {
            "messages_sent": 1,
            "messages_received": 1,
            "rows_sent": 3,
            "rows_received": 3,
            "bytes_sent": sent,
            "bytes_received": received,
            "dropped": 0,
            "transfer_ns": 0,
            "transfers": 0,
        }
        assert expert.counters()["bytes_received"] == sent
        assert expert.counters()["bytes_sent"] == received


def test_only_what_was_sent_to_a_waiting_receiver_is_timed(opened: Opened) -> None:
    with opened(geometry_of()) as cluster:
        attention, expert = cluster.attention[0], cluster.experts[0]
        handle = attention.dispatch(0, 0, tokens(3), [part_of(3)])  # while it does something else
        expert.wait(0)
        serve_all(expert, 0, lambda node, local, token: token)
        arrivals_of(attention, handle)
        assert expert.counters()["transfers"] == 0
        expert.wait(0)
        attention.dispatch(0, 1, tokens(3), [part_of(3)])  # while it waits
        assert len(expert.receive()) == 1
        assert expert.counters()["transfers"] == 1
        assert expert.counters()["transfer_ns"] > 0


# --- waiting: a wait for 1000 seconds that nothing ends runs into the test's timeout --------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def check_sleeps(port: Port, pipe: tuple[int, int]) -> None:
    """Nothing wakes `port` before the pipe does."""
    reader, writer = pipe
    threading.Timer(0.03, os.write, (writer, b"x")).start()
    port.wait(1000.0, [reader])
    assert select.select([reader], [], [], 0)[0] == [reader]
    os.read(reader, 1)


def test_wait_hears_only_the_file_descriptors_of_this_call(
    opened: Opened, pipe: tuple[int, int]
) -> None:
    with opened(geometry_of()) as cluster:
        port = cluster.experts[0]
        earlier = os.pipe()
        os.write(earlier[1], b"x")
        port.wait(1000.0, [earlier[0]])
        check_sleeps(port, pipe)
        os.write(earlier[1], b"x")
        port.wait(1000.0, [pipe[0], earlier[0]])
        for descriptor in earlier:
            os.close(descriptor)


def test_a_ring_before_the_wait_is_heard_once(opened: Opened, pipe: tuple[int, int]) -> None:
    with opened(geometry_of()) as cluster:
        cluster.attention[0].rest(0)
        cluster.attention[0].rest(0)
        cluster.experts[0].wait(1000.0)
        assert cluster.experts[0].receive() == [Rest(0, 0)]
        check_sleeps(cluster.experts[0], pipe)


def test_a_death_wakes_once(opened: Opened, pipe: tuple[int, int]) -> None:
    with opened(geometry_of()) as cluster:
        cluster.experts[0].close()
        cluster.attention[0].wait(1000.0)
        check_sleeps(cluster.attention[0], pipe)
        assert cluster.attention[0].lost_peers() == {0}


def test_closing_is_noticed_by_peers(opened: Opened) -> None:
    with opened(geometry_of(2, 2)) as cluster:
        cluster.experts[1].close()
        for port in cluster.attention:
            port.wait(1000.0)
            assert port.lost_peers() == {1}
        cluster.attention[0].close()
        cluster.experts[0].wait(1000.0)
        assert cluster.experts[0].lost_peers() == {0}
        port = cluster.attention[1]
        handle = port.dispatch(0, 0, tokens(1), [part_of(1), part_of(1)])  # no error, no block
        assert handle.awaiting == {0, 1}
