"""The road `dist` without a network: memory, channels, and GPUs' groups as if there were any."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megainfer.device import HOST
from megainfer.device.host import HostDevice
from megainfer.errors import ConfigError, NodeDied, ProtocolError
from megainfer.m2n.dist import link, site
from megainfer.m2n.dist.buffers import Buffer, SentBuffers, bucket_of, buckets
from megainfer.m2n.dist.channel import Channel, polled
from megainfer.m2n.dist.groups import GlooGroups, Groups, groups_for
from megainfer.m2n.dist.handshake import Terms, greet, welcome
from megainfer.m2n.dist.listening import TcpListener
from megainfer.m2n.dist.pair_store import PairStore
from megainfer.m2n.dist.ports import DistAttentionPort, DistExpertPort
from megainfer.m2n.dist.proof import demand_proof, give_proof
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.host import handshake
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part
from megainfer.m2n.roads import Road, Seat, join_attention
from tests.support.fake_groups import FakeGroup, FakeGroups, FakeWork, Pipe, PretendGpu
from tests.support.m2n_cluster import KEY, SECONDS, fresh_token, road_of

GEOMETRY = Geometry(1, 2, 2, capacity=6, hidden_size=8, top_k=2, dtype="float32").on_devices


# --- buckets and buffers --------------------------------------------------------------------------


@given(capacity=st.integers(1, 5000), data=st.data())
def test_every_message_fits_its_bucket(capacity: int, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, capacity))
    bucket = bucket_of(rows, capacity)
    assert rows <= bucket <= min(capacity, 2 * rows)
    assert bucket in buckets(capacity)
    assert list(buckets(capacity)) == sorted(set(buckets(capacity)))


def new_buffer() -> Buffer:
    return Buffer(GEOMETRY, GEOMETRY.dispatch_bytes, HOST)


def test_what_travels_holds_all_that_views_show() -> None:
    buffer = new_buffer()
    for rows in range(1, GEOMETRY.capacity + 1):
        packed = buffer.views.packed(0, rows)
        packed.count.fill_(rows)  # the last of it
        sent = buffer.sent_of(rows)
        begin = packed.count.data_ptr() - sent.data_ptr()
        assert sent[begin : begin + 4].view(torch.int32).tolist() == [rows]


def work() -> FakeWork:
    return FakeWork(Pipe(), lambda: True)


class UsedMemory(HostDevice):
    """What was somebody else's."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.full(tuple(shape), 0x5A, dtype=dtype)


def test_padding_tells_nothing_of_what_was_there() -> None:
    buffer = Buffer(GEOMETRY, GEOMETRY.dispatch_bytes, UsedMemory())
    assert not buffer.sent_of(GEOMETRY.capacity).any()


def test_a_buffer_is_not_written_while_it_may_be_on_its_way() -> None:
    sent = SentBuffers(new_buffer, 1, most=2)
    first = sent[0]
    assert sent.renew(0)
    assert sent[0] is first  # it was never sent
    sent.sent(0, work())
    assert sent.renew(0)
    second = sent[0]
    assert second is not first
    sent.sent(0, work())
    sent.arrived(1)
    assert sent.renew(0)
    assert sent[0] is first  # which has arrived
    assert [buffer.last for buffer in (first, second)] == [1, 2]


def test_there_are_only_so_many_buffers() -> None:
    sent = SentBuffers(new_buffer, 2, most=2)
    for _ in range(2):
        sent.sent(0, work())
        assert sent.renew(0)
    sent.sent(0, work())
    assert not sent.renew(0)
    assert sent.renew(1)  # its own was never used
    sent.arrived(3)
    assert sent.renew(0)


# --- channels -------------------------------------------------------------------------------------


def channel_over(pipe: Pipe) -> Channel:
    return Channel(FakeGroup(pipe), 1, polled, PretendGpu())


@pytest.mark.parametrize("mute", [False, True])
def test_a_channel_looks_until_its_payload_is_there(mute: bool) -> None:
    channel, into = channel_over(Pipe(lag=3, mute=mute)), torch.zeros(4)
    sent = channel.send(torch.arange(4.0))
    channel.receive(into, SECONDS)
    assert into.tolist() == [0, 1, 2, 3]
    channel.await_sent(sent, SECONDS)


def test_a_payload_that_never_comes_is_given_up() -> None:
    with pytest.raises(NodeDied, match=r"was not there within 0\.01 s"):
        channel_over(Pipe()).receive(torch.zeros(4), 0.01)


def test_work_that_failed_is_completed_and_no_payload() -> None:
    with pytest.raises(NodeDied, match=r"given up: NCCL error: remote process exited$"):
        channel_over(Pipe(died=True)).receive(torch.zeros(4), SECONDS)


@pytest.mark.parametrize("call", [Channel.send, lambda c, p: c.receive(p, SECONDS)])
def test_a_group_that_fails_is_a_dead_peer(call: Callable[[Channel, torch.Tensor], None]) -> None:
    with pytest.raises(NodeDied, match=r"NCCL error: remote process exited$"):
        call(channel_over(Pipe(broken=True)), torch.zeros(1))


# --- proof and store ------------------------------------------------------------------------------


def both_ends(
    ours: Callable[[handshake.Channel], object], theirs: Callable[[handshake.Channel], object]
) -> list[object]:
    """What the two return or raise, at the ends of one connection."""
    results: list[object] = [None, None]

    def run(end: int, act: Callable[[handshake.Channel], object], own: socket.socket) -> None:
        with own:
            try:
                results[end] = act(handshake.Channel(own, time.monotonic() + SECONDS, f"end {end}"))
            except (NodeDied, ProtocolError) as error:
                results[end] = error

    pair = zip((ours, theirs), socket.socketpair(), strict=True)
    threads = [threading.Thread(target=run, args=(end, *each)) for end, each in enumerate(pair)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    return results


def test_the_same_key_is_proved() -> None:
    key = KEY.encode()
    results = both_ends(lambda c: demand_proof(c, key), lambda c: give_proof(c, key))
    assert results == [None, None]


def test_another_key_is_refused_by_both_words() -> None:
    results = both_ends(lambda c: demand_proof(c, b"a"), lambda c: give_proof(c, b"b"))
    assert "has not proved that it has this instance's key" in str(results[0])
    assert "end 1 refused" in str(results[1])


def test_an_expert_node_proves_itself_too() -> None:
    """Somebody in its place, who lets everybody in, learns nothing and is left."""

    def impostor(channel: handshake.Channel) -> None:
        channel.send(handshake.Frame.CHALLENGE, bytes(32))
        channel.receive(handshake.Frame.PROOF, 64)
        channel.send(handshake.Frame.PROOF, bytes(32))
        channel.receive(handshake.Frame.HELLO, handshake.HELLO_BYTES)

    results = both_ends(impostor, lambda c: give_proof(c, KEY.encode()))
    assert "refused: it has not proved" in str(results[0])
    assert "has not proved that it has this instance's key" in str(results[1])


def test_a_proof_is_good_for_one_connection() -> None:
    key, heard = KEY.encode(), []

    def record(channel: handshake.Channel) -> None:
        channel.send(handshake.Frame.CHALLENGE, bytes(32))
        heard.append(channel.receive(handshake.Frame.PROOF, 64)[0])

    both_ends(record, lambda c: give_proof(c, key))

    def replay(channel: handshake.Channel) -> None:
        channel.receive(handshake.Frame.CHALLENGE, 32)
        channel.send(handshake.Frame.PROOF, heard[0])
        channel.receive(handshake.Frame.PROOF, 32)

    results = both_ends(lambda c: demand_proof(c, key), replay)
    assert "has not proved" in str(results[0])


def test_a_pairs_store_is_seen_from_both_ends() -> None:
    def end(channel: handshake.Channel) -> tuple[bytes, bytes, bool]:
        store = PairStore(channel)
        own = channel.peer.encode()
        store.set(f"of {channel.peer}", own)
        store.wait(["of end 0", "of end 1"])
        known = store.check(["of end 0"]), store.check(["of end 2"])
        store.close()
        store.set("later", b"is told nobody")
        with pytest.raises(ProtocolError, match="'of end 2' was not set"):
            store.get("of end 2")
        return store.get("of end 0"), store.get("of end 1"), known == (True, False)

    assert both_ends(end, end) == [(b"end 0", b"end 1", True)] * 2


def test_a_value_without_a_whole_name_is_refused() -> None:
    def liar(channel: handshake.Channel) -> None:
        channel.send(handshake.Frame.STORE, b"\xff\x00name")
        channel.receive(handshake.Frame.STORE, 0)

    results = both_ends(lambda c: PairStore(c).get("name"), liar)
    assert "without a whole name" in str(results[0])
    assert "without a whole name" in str(results[1])


def test_a_peer_that_leaves_while_groups_are_made_is_named() -> None:
    groups = GlooGroups("127.0.0.1")
    terms = Terms(Seat(GEOMETRY, 0), KEY.encode(), groups)

    def leaver(channel: handshake.Channel) -> None:
        demand_proof(channel, terms.key)
        hello = handshake.Hello.of(handshake.Side.EXPERT, terms.seat)
        channel.receive_hello(hello, handshake.Side.ATTENTION)
        channel.send(handshake.Frame.HELLO, hello.pack())
        channel.send(handshake.Frame.GROUPS, channel.receive(handshake.Frame.GROUPS, 40)[0])

    ours, theirs = socket.socketpair()
    end = threading.Thread(target=serve_and_close, args=(leaver, theirs))
    end.start()
    with (
        ours,
        pytest.raises(NodeDied, match=r"^expert node 0 (closed the connection|left the handshake)"),
    ):
        greet(ours, terms, (0, 0), time.monotonic() + SECONDS)
    end.join(SECONDS)
    groups.close()


def serve_and_close(act: Callable[[handshake.Channel], None], own: socket.socket) -> None:
    with own:
        act(handshake.Channel(own, time.monotonic() + SECONDS, "an attention node"))


def test_another_kind_of_groups_is_named() -> None:
    gloo, pretended = GlooGroups("127.0.0.1"), FakeGroups(PretendGpu())

    def end(connection: socket.socket, act: Callable[..., object], groups: Groups) -> str:
        terms = Terms(Seat(GEOMETRY, 0), KEY.encode(), groups)
        args = (connection, terms) if act is welcome else (connection, terms, (0, 0))
        with pytest.raises(ProtocolError) as caught:
            act(*args, time.monotonic() + SECONDS)
        return str(caught.value)

    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(2) as pool:
        attention = pool.submit(end, ours, greet, gloo)
        expert = pool.submit(end, theirs, welcome, pretended)
        said = {attention.result(SECONDS), expert.result(SECONDS)}
    assert "groups differ: it has" in " ".join(said)
    gloo.close()


# --- what is asked for and can't be ---------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "short"])
def test_a_key_that_could_be_guessed_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"a key of at least 32 characters.*one of {len(key)}"):
        join_attention(Road("dist", fresh_token(), key=key), Seat(GEOMETRY, 0))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "nowhere", "224.0.0.1", "192.0.2.77"])
def test_it_listens_at_one_interfaces_address(host: str) -> None:
    with pytest.raises(ConfigError, match=host):
        TcpListener.create(host)


def test_nccl_is_for_gpus() -> None:
    with pytest.raises(ConfigError, match=r"'nccl' join nodes on NVIDIA GPUs.*on the host: take"):
        groups_for("nccl", "127.0.0.1", None)
    with pytest.raises(ConfigError, match="no groups 'mpi'; it has: gloo, nccl"):
        groups_for("mpi", "127.0.0.1", None)


# --- nodes on GPUs, as if there were any ----------------------------------------------------------


@dataclass
class Pretended:
    groups: FakeGroups
    attention: DistAttentionPort
    experts: list[DistExpertPort]

    def close(self) -> None:
        for port in (self.attention, *self.experts):
            port.close()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretended]:
    """One attention node and two expert nodes, joined by groups that are polled."""
    groups, road = FakeGroups(PretendGpu()), road_of("dist")
    monkeypatch.setattr(site, "groups_for", lambda *_: groups)
    experts = [DistExpertPort(road, Seat(GEOMETRY, node)) for node in range(2)]
    attention = DistAttentionPort(road, Seat(GEOMETRY, 0))
    made = Pretended(groups, attention, experts)
    for node in range(2):
        attention.visit((node, 0), time.monotonic() + SECONDS)
    for expert in experts:
        expert.await_all(time.monotonic() + SECONDS)
    attention.begin()
    yield made
    made.close()


def until(port: AttentionPort | ExpertPort, ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        port.wait(SECONDS)


def part_of(rows: int, count: int) -> Part:
    """`count` of the rows are no padding, which the device alone knows."""
    choices = (rows, GEOMETRY.top_k)
    ids = torch.zeros(choices, dtype=torch.int32)
    return Part(torch.arange(rows), ids, torch.ones(choices), torch.tensor([count]).int())


def answer(expert: ExpertPort, count: int) -> None:
    """Twice the rows that count, and behind them what nobody may read."""
    found: list[Dispatch] = []
    until(expert, lambda: found.extend(expert.receive()) or found)
    (message,) = found
    assert message.count is not None
    assert int(message.count) == count
    reply = expert.reply_buffer(message)
    reply.fill_(torch.nan)
    reply[:count] = 2 * message.hidden[:count]
    expert.reply(message)


def await_replies(attention: DistAttentionPort, count: int) -> None:
    arrived: list[int] = []

    def look() -> bool:
        arrived.extend(arrival.expert_node for arrival in attention.poll())
        return len(arrived) == count

    until(attention, look)


def test_counts_that_only_a_gpu_knows_travel_with_the_rows(pretended: Pretended) -> None:
    hidden = torch.randn(5, GEOMETRY.hidden_size)
    for _ in range(5):
        handle = pretended.attention.dispatch(1, 2, hidden, [part_of(5, 3), part_of(3, 1)])
        for expert, count in zip(pretended.experts, (3, 1), strict=True):
            answer(expert, count)
        await_replies(pretended.attention, 2)
        out = torch.zeros_like(hidden)
        pretended.attention.combine(handle, out)
        expected = torch.zeros_like(hidden)
        expected[:3] += 2 * hidden[:3]
        expected[:1] += 2 * hidden[:1]
        assert torch.equal(out, expected)


@pytest.mark.parametrize("fault", ["broken", "stuck", "died"])
def test_a_group_that_fails_costs_its_own_pair_only(
    pretended: Pretended, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "GROUP_SECONDS", 0.05)
    to_first = pretended.groups.pipes[0]
    setattr(to_first, fault, True)
    hidden = torch.randn(4, GEOMETRY.hidden_size)
    handle = pretended.attention.dispatch(0, 0, hidden, [part_of(2, 2), part_of(4, 4)])
    answer(pretended.experts[1], 4)
    until(pretended.attention, lambda: pretended.attention.lost_peers() == {0})
    until(pretended.experts[0], lambda: pretended.experts[0].lost_peers() == {0})
    until(pretended.attention, lambda: pretended.attention.poll())
    assert handle.awaiting == {0, 1}
    assert pretended.experts[1].lost_peers() == frozenset()
    assert to_first.aborted.wait(SECONDS)  # or its kernels would wait for ever
    assert not pretended.groups.pipes[2].aborted.is_set()
    pretended.attention.set_epoch(1, [1])
    pretended.experts[1].set_epoch(1)
    pretended.attention.dispatch(0, 0, hidden, [part_of(0, 0), part_of(4, 4)])
    answer(pretended.experts[1], 4)
    until(pretended.attention, lambda: pretended.attention.poll())


def test_a_payload_that_was_given_up_is_no_message(pretended: Pretended) -> None:
    """Aborted receives are completed, with whatever was in their buffer."""
    to_first = pretended.groups.pipes[0]
    to_first.stuck = True
    to_first.awaited.clear()  # it was warmed
    hidden = torch.randn(4, GEOMETRY.hidden_size)
    pretended.attention.dispatch(0, 0, hidden, [part_of(4, 4), part_of(0, 0)])
    assert to_first.awaited.wait(SECONDS)
    first = pretended.experts[0]
    (to_attention,) = first._site._links
    to_attention._break("this test has enough of it")
    to_attention.join(SECONDS)
    assert first.receive() == []
    assert first.lost_peers() == {0}
