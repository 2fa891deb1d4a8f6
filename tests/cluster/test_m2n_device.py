"""M2N over a device that works late and out of order: against the reference, and mistakes that
have to be found."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from megainfer.errors import ProtocolError
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Arrival, Dispatch, ExpertPort, Handle, Part, Rest
from megainfer.m2n.reference import Expert, ExpertChoices, make_parts, marked_tokens, moe, serve
from tests.support.fake_device import FakeDevice, FakeEvent
from tests.support.fake_road import FakeHub
from tests.support.happens_before import Race
from tests.support.m2n_cluster import affine_expert, padded, random_routing, spread

HIDDEN, TOP_K, CAPACITY = 8, 2, 6
LOOKS = 10_000  # of hosts that spin, before a test gives up
Key = tuple[int, int]  # attention node, micro-batch


class Instance:
    """Its ports, and a stream of every node."""

    def __init__(self, geometry: Geometry, seed: int = 0) -> None:
        self.geometry, self.device = geometry, FakeDevice(seed)
        self.homes = spread(5, geometry.num_expert)
        self.expert = affine_expert(self.homes)
        hub = FakeHub(geometry, self.device)
        stream = self.device.stream
        self.attention = [(hub.attention_port(i), stream()) for i in range(geometry.num_attention)]
        self.experts = [(hub.expert_port(n), stream()) for n in range(geometry.num_expert)]

    def layer(self, steps: dict[Key, tuple[Tensor, Sequence[Part]]]) -> dict[Key, Tensor]:
        """One layer of these micro-batches: hidden states and parts to sums."""
        flying, sums = {}, {}
        for (i, micro_batch), (hidden, parts) in steps.items():
            port, stream = self.attention[i]
            with self.device.on(stream):
                handle = port.dispatch(micro_batch, 5, hidden, parts)
            flying[i, micro_batch] = handle, set(handle.awaiting)
        for _ in range(LOOKS):
            self.answer()
            sums |= self._combine(flying)
            if not flying:
                return sums
        raise AssertionError(f"no replies to {flying.keys()}")

    def answer(self) -> None:
        for node, (port, stream) in enumerate(self.experts):
            with self.device.on(stream):
                for message in port.receive():
                    assert isinstance(message, Dispatch)
                    if message.num_rows:
                        compute(self.device, message, port, node, self.expert)
                        port.reply(message)

    def _combine(self, flying: dict[Key, tuple[Handle, set[int]]]) -> dict[Key, Tensor]:
        sums = {}
        for i, (port, stream) in enumerate(self.attention):
            with self.device.on(stream):
                for arrival in port.poll():
                    key = i, arrival.micro_batch
                    flying[key][1].discard(arrival.expert_node)
                for key in [key for key in flying if key[0] == i and not flying[key][1]]:
                    handle, _ = flying.pop(key)
                    sums[key] = self.device.upload(torch.zeros(CAPACITY, HIDDEN))
                    port.combine(handle, sums[key])
        return sums


def compute(
    device: FakeDevice, message: Dispatch, port: ExpertPort, node: int, expert: Expert
) -> None:
    """What an expert node's kernels do; behind the rows that count they leave what they like."""
    out, count = port.reply_buffer(message), message.count
    assert count is not None

    def kernel() -> None:
        inputs = (message.hidden, message.local_ids, message.weights)
        rows = int(count)
        out.fill_(torch.nan)[:rows] = serve(node, *(t[:rows] for t in inputs), expert)

    reads = [message.hidden, message.local_ids, message.weights, count]
    device.launch(kernel, reads, [out], name="experts")


def uploaded(device: FakeDevice, part: Part) -> Part:
    return Part(*(device.upload(tensor) for tensor in part if tensor is not None))


def part_of(num_rows: int) -> Part:
    choices = torch.zeros(num_rows, TOP_K)
    return padded(Part(torch.arange(num_rows), choices.to(torch.int32), choices + 1), CAPACITY)


def geometry_of(m: int = 1, n: int = 1, micro_batches: int = 1) -> Geometry:
    return Geometry(m, n, micro_batches, CAPACITY, HIDDEN, TOP_K, "float32")


def routings_of(instance: Instance, layer: int) -> dict[Key, ExpertChoices]:
    geometry = instance.geometry
    generator = torch.Generator().manual_seed(layer)
    keys = [(i, b) for i in range(geometry.num_attention) for b in range(geometry.micro_batches)]
    return {key: random_routing(CAPACITY, TOP_K, instance.homes, generator) for key in keys}


@pytest.mark.parametrize("counted", [False, True], ids=["host counts", "device counts"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_equals_the_reference(m: int, n: int, micro_batches: int, counted: bool) -> None:
    for seed in range(3):
        check_layers(Instance(geometry_of(m, n, micro_batches), seed), counted)


def check_layers(instance: Instance, counted: bool) -> None:
    """Three layers, each of which takes what the one before it gave."""
    device, n = instance.device, instance.geometry.num_expert
    for layer in range(3):
        routings = routings_of(instance, layer)
        if not layer:
            values = {k: marked_tokens(CAPACITY, HIDDEN, k[0], torch.float32) for k in routings}
            hiddens = {key: device.upload(value) for key, value in values.items()}
            device.synchronize()  # what other streams were given is there for everybody
        steps = {}
        for key, routing in routings.items():
            parts = make_parts(routing, n)
            parts = tuple(padded(part, CAPACITY) for part in parts) if counted else parts
            with device.on(instance.attention[key[0]][1]):
                steps[key] = hiddens[key], [uploaded(device, part) for part in parts]
        hiddens = instance.layer(steps)
        values = {k: moe(values[k], routing, n, instance.expert) for k, routing in routings.items()}
    device.synchronize()
    for key, expected in values.items():
        device.host_reads(hiddens[key])
        assert torch.equal(hiddens[key], expected)


def test_every_node_with_room_for_rows_replies() -> None:
    instance = Instance(geometry_of(n=3))
    parts = [part_of(2), part_of(0), Part(*(tensor[:0] for tensor in part_of(0)[:3]))]
    with instance.device.on(instance.attention[0][1]):
        parts = [uploaded(instance.device, part) for part in parts]
        hidden = instance.device.upload(torch.ones(CAPACITY, HIDDEN))
    sums = instance.layer({(0, 0): (hidden, parts)})
    sent = [port.counters()["messages_sent"] for port, _ in instance.experts]
    assert sent == [1, 1, 0]
    instance.device.synchronize()
    assert sums[0, 0].isfinite().all()


# --- one attention node and one expert node, each on its stream, the default one for the rest -----


@pytest.fixture
def pair() -> Instance:
    return Instance(geometry_of())


def dispatch(pair: Instance) -> tuple[Handle, Tensor]:
    port, stream = pair.attention[0]
    with pair.device.on(stream):
        part, hidden = uploaded(pair.device, part_of(2)), torch.ones(CAPACITY, HIDDEN)
        on_device = pair.device.upload(hidden)
        return port.dispatch(0, 0, on_device, [part]), on_device


def received(pair: Instance) -> Dispatch | Rest:
    port, stream = pair.experts[0]
    with pair.device.on(stream):
        for _ in range(LOOKS):
            for message in port.receive():
                return message
    raise AssertionError("no message came")


def replied(pair: Instance) -> Arrival:
    port, stream = pair.attention[0]
    with pair.device.on(stream):
        for _ in range(LOOKS):
            for arrival in port.poll():
                return arrival
    raise AssertionError("no reply came")


def reply(pair: Instance, message: Dispatch | Rest) -> None:
    port, stream = pair.experts[0]
    assert isinstance(message, Dispatch)
    with pair.device.on(stream):
        compute(pair.device, message, port, 0, pair.expert)
        port.reply(message)


def test_nothing_is_seen_before_the_device_has_done_it(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, expert = pair.attention[0][0], pair.experts[0][0]
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        dispatch(pair)
        assert expert.receive() == []
    message = received(pair)
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        reply(pair, message)
        assert attention.poll() == []
    assert replied(pair).expert_node == 0


def test_a_road_that_does_not_wait_is_found(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEvent, "wait", lambda event: None)
    dispatch(pair)
    message = received(pair)
    with pytest.raises(Race, match="experts on stream 2 reads what pack on stream 1 wrote"):
        reply(pair, message)


def test_hidden_states_that_change_too_early_are_found(pair: Instance) -> None:
    _, hidden = dispatch(pair)
    with pair.device.on(pair.attention[0][1]):
        pair.device.launch(lambda: hidden.zero_(), [], [hidden])  # after the call, in its stream
    with pytest.raises(Race, match="next layer on stream 0 writes"):
        pair.device.launch(lambda: hidden.zero_(), [], [hidden], name="next layer")


def test_a_reply_that_does_not_come_after_its_kernels_is_found(pair: Instance) -> None:
    dispatch(pair)
    message, port = received(pair), pair.experts[0][0]
    assert isinstance(message, Dispatch)
    with pair.device.on(pair.experts[0][1]):
        compute(pair.device, message, port, 0, pair.expert)
    with pytest.raises(Race, match="publish REPLY on stream 0 reads what experts on stream 2"):
        port.reply(message)


def test_a_reply_slot_that_may_still_be_read_is_found(pair: Instance) -> None:
    """Its sums are added in a stream that the next dispatch doesn't come after."""
    handle, _ = dispatch(pair)
    reply(pair, received(pair))
    replied(pair)
    out = pair.device.upload(torch.zeros(CAPACITY, HIDDEN))
    pair.attention[0][0].combine(handle, out)
    dispatch(pair)
    with pytest.raises(Race, match="experts on stream 2 writes what add on stream 0 reads"):
        reply(pair, received(pair))


def test_sums_that_are_read_too_early_are_found(pair: Instance) -> None:
    handle, _ = dispatch(pair)
    reply(pair, received(pair))
    replied(pair)
    done = pair.device.event()
    with pair.device.on(pair.attention[0][1]):
        out = pair.device.upload(torch.zeros(CAPACITY, HIDDEN))
        pair.attention[0][0].combine(handle, out)
        done.record()
    with pytest.raises(Race, match="the host reads what add on stream 1 wrote"):
        pair.device.host_reads(out)
    done.synchronize()
    pair.device.host_reads(out)


def test_an_error_arrives_and_rest_too(pair: Instance) -> None:
    handle, _ = dispatch(pair)
    message, (port, stream) = received(pair), pair.experts[0]
    assert isinstance(message, Dispatch)
    with pair.device.on(stream):
        port.reply_error(message, "out of order")
    assert replied(pair) == Arrival(0, 0, 0, "out of order")
    with pytest.raises(ProtocolError, match=r"\[0\] have failed"):
        pair.attention[0][0].combine(handle, torch.zeros(CAPACITY, HIDDEN))
    pair.attention[0][0].rest(0)
    assert received(pair) == Rest(0, 0)


def test_what_is_published_after_its_epoch_is_dropped(
    pair: Instance, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, expert = pair.attention[0][0], pair.experts[0][0]
    with monkeypatch.context() as stopped:
        stopped.setattr(pair.device, "advance", lambda: False)
        dispatch(pair)
        attention.set_epoch(1)
        expert.set_epoch(1)
        dispatch(pair)
    message = received(pair)
    assert isinstance(message, Dispatch)
    assert (message.sequence, expert.counters()["dropped"]) == (2, 1)
    reply(pair, message)
    assert replied(pair).expert_node == 0

    dispatch(pair)
    reply(pair, received(pair))
    attention.set_epoch(2)
    pair.device.synchronize()
    assert attention.poll() == []
    assert attention.counters()["dropped"] == 1


def test_a_message_of_a_newer_epoch_waits_for_it(pair: Instance) -> None:
    pair.attention[0][0].set_epoch(1)
    dispatch(pair)
    pair.device.synchronize()
    assert pair.experts[0][0].receive() == []
    pair.experts[0][0].set_epoch(1)
    assert isinstance(received(pair), Dispatch)


def test_a_lost_peer_is_named(pair: Instance) -> None:
    pair.experts[0][0].close()
    assert pair.attention[0][0].lost_peers() == {0}
