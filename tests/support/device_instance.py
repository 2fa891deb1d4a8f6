"""Nodes over a device that works late, as tests drive their ports."""

from collections.abc import Sequence

import torch
from torch import Tensor

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Arrival, Dispatch, ExpertPort, Handle, Part, Rest
from megainfer.m2n.reference import Expert, ExpertChoices, serve
from tests.support.fake_device import FakeDevice
from tests.support.fake_road import FakeHub
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
        self.hub = hub = FakeHub(geometry, self.device)
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


# --- one attention node and one expert node, each on its stream, the default one for the rest -----


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
