"""The processes of the M2N benchmark: the same exchange over M2N's roads and over plain gloo.

Both roads carry the same bytes: hidden rows float32, K expert ids and K weights a row, packed
alike. The sender writes all of them, the receiver reads all of them and checks their sums.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megainfer.errors import NodeDied
from megainfer.m2n.geometry import LINE_BYTES, Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Handle, Part
from megainfer.m2n.roads import Road, Seat, open_attention_port, open_expert_port

TIMEOUT_SECONDS = 60.0
Taken = TypeVar("Taken")
GLOO = "gloo"


@dataclass(frozen=True)
class Setup:
    """What every process knows. roads: M2N's. cores: where processes are pinned, in turn; None
    leaves them where they like."""

    geometry: Geometry
    store: str
    roads: tuple[Road, ...]
    cores: tuple[int, ...] | None


@dataclass(frozen=True)
class Exchange:
    """`count` messages of `rows` rows from every attention process to every expert process.

    combine: expert processes write all rows of a reply and attention processes add them up; else
    the reply is an acknowledgement without contents. window: messages in flight a pair.
    """

    road: str
    rows: int
    combine: bool
    window: int
    count: int


@dataclass
class Times:
    """ns. An attention process has when each message began and when its replies were in; an expert
    process has, by source, when each was read."""

    started: list[int]
    ended: list[int]
    read: list[list[int]]


class Contender(Protocol):
    def run(self, exchange: Exchange) -> Times: ...

    def close(self) -> None: ...


def road_name(road: Road) -> str:
    """Each road's own."""
    if road.kind == "dist":
        return f"m2n dist ({road.groups})"
    options = road.options
    language = "python " if options.mover == "plain" else ""
    return f"m2n {language}spin {options.spin_seconds * 1e6:.0f}us"


def process_main(setup: Setup, rank: int, orders: Connection) -> None:
    """Run exchanges as they are ordered, until None comes."""
    torch.set_num_threads(1)
    if setup.cores is not None:
        os.sched_setaffinity(0, {setup.cores[rank % len(setup.cores)]})
    roads = _open_roads(setup, rank)
    while (exchange := orders.recv()) is not None:
        orders.send(roads[exchange.road].run(exchange))
    for road in roads.values():
        road.close()


def _open_roads(setup: Setup, rank: int) -> dict[str, Contender]:
    geometry = setup.geometry
    node = rank - geometry.num_attention
    roads: dict[str, Contender] = {}
    for road in setup.roads:
        roads[road_name(road)] = (
            M2nAttention(road, Seat(geometry, rank, 0))
            if node < 0
            else M2nExpert(road, Seat(geometry, node, 0))
        )
    dist.init_process_group(
        GLOO,
        init_method=f"file://{setup.store}",
        rank=rank,
        world_size=geometry.num_attention + geometry.num_expert,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    roads[GLOO] = GlooAttention(geometry) if node < 0 else GlooExpert(geometry)
    return roads


class _Source:
    """Where an attention process's rows come from and go to."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._hidden = torch.ones(geometry.capacity, geometry.hidden_size)
        self._mark = self._hidden.numpy()  # sets one element far cheaper than torch
        self.out = torch.zeros(geometry.capacity, geometry.hidden_size)

    def hidden(self, number: int, rows: int) -> Tensor:
        """Rows of ones, but that the first element tells even from odd messages."""
        self._mark[0, 0] = number % 2
        return self._hidden[:rows]

    def part(self, rows: int) -> Part:
        choices = (rows, self._geometry.top_k)
        return Part(torch.arange(rows), torch.ones(choices, dtype=torch.int32), torch.ones(choices))


def _check(number: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> None:
    """Read every byte, and see that they are this message's."""
    found = float(hidden.sum()), int(ids.sum()), float(weights.sum())
    expected = hidden.numel() - 1 + number % 2, ids.numel(), weights.numel()
    if found != expected:
        raise AssertionError(f"message {number} sums up to {found}, not {expected}")


class M2nAttention:
    def __init__(self, road: Road, seat: Seat) -> None:
        self._port = open_attention_port(road, seat, TIMEOUT_SECONDS)
        self._source = _Source(seat.geometry)
        self._num_expert = seat.geometry.num_expert

    def run(self, exchange: Exchange) -> Times:
        times = Times([0] * exchange.count, [0] * exchange.count, [])
        parts = [self._source.part(exchange.rows)] * self._num_expert
        flights: dict[int, tuple[Handle, set[int]]] = {}  # by micro-batch
        sent = done = 0
        while done < exchange.count:
            for micro_batch in range(exchange.window):
                if micro_batch not in flights and sent < exchange.count:
                    hidden = self._source.hidden(sent, exchange.rows)
                    times.started[sent] = time.monotonic_ns()
                    # The layer is free to say which message it is.
                    handle = self._port.dispatch(micro_batch, sent, hidden, parts)
                    flights[micro_batch] = handle, set(handle.awaiting)
                    sent += 1
            _wait_for(self._port, lambda: self._take_in(flights, exchange, times))
            done = sent - len(flights)
        return times

    def _take_in(
        self, flights: dict[int, tuple[Handle, set[int]]], exchange: Exchange, times: Times
    ) -> bool:
        arrivals = self._port.poll()
        for arrival in arrivals:
            handle, missing = flights[arrival.micro_batch]
            missing.discard(arrival.expert_node)
            if not missing:
                del flights[arrival.micro_batch]
                if exchange.combine:
                    self._port.combine(handle, self._source.out[: exchange.rows])
                times.ended[arrival.layer] = time.monotonic_ns()
        return bool(arrivals)

    def close(self) -> None:
        self._port.close()


class M2nExpert:
    def __init__(self, road: Road, seat: Seat) -> None:
        self._port = open_expert_port(road, seat, TIMEOUT_SECONDS)
        self._num_attention = seat.geometry.num_attention

    def run(self, exchange: Exchange) -> Times:
        times = Times([], [], [[0] * exchange.count for _ in range(self._num_attention)])
        left = self._num_attention * exchange.count
        receive = cast(Callable[[], list[Dispatch]], self._port.receive)  # nobody rests
        while left:
            messages = _wait_for(self._port, receive)
            left -= len(messages)
            for message in messages:
                self._serve(message, exchange, times)
        return times

    def _serve(self, message: Dispatch, exchange: Exchange, times: Times) -> None:
        _check(message.layer, message.hidden, message.local_ids, message.weights)
        times.read[message.source][message.layer] = time.monotonic_ns()
        out = self._port.reply_buffer(message)
        if exchange.combine:
            torch.add(message.hidden, 1, out=out)
        self._port.reply(message)

    def close(self) -> None:
        self._port.close()


def _wait_for(port: AttentionPort | ExpertPort, take_in: Callable[[], Taken]) -> Taken:
    """The first thing that isn't empty or false."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (taken := take_in()):
        port.wait(1.0)
        if time.monotonic() > deadline:
            raise NodeDied(f"no message came within {TIMEOUT_SECONDS:g} s")
    return taken


class _Packed:
    """One gloo message's buffer, laid out as an M2N payload."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._bytes = torch.zeros(geometry.dispatch_bytes(geometry.capacity), dtype=torch.uint8)

    def dispatch(self, rows: int) -> Tensor:
        return self._bytes[: self._geometry.dispatch_bytes(rows)]

    def reply(self, rows: int, combine: bool) -> Tensor:
        return self._bytes[: self._geometry.reply_bytes(rows) if combine else LINE_BYTES]

    def hidden(self, rows: int) -> Tensor:
        size = rows * self._geometry.hidden_size * torch.float32.itemsize
        return self._bytes[:size].view(torch.float32).view(rows, -1)

    def ids_and_weights(self, rows: int) -> tuple[Tensor, Tensor]:
        ids, weights = self._geometry.ids_offset(rows), self._geometry.weights_offset(rows)
        size = rows * self._geometry.top_k * 4
        return (
            self._bytes[ids : ids + size].view(torch.int32).view(rows, -1),
            self._bytes[weights : weights + size].view(torch.float32).view(rows, -1),
        )


@dataclass
class _Lane:
    """The buffers of one pair and one micro-batch, and the transfers that use them."""

    dispatch: _Packed
    reply: _Packed
    sending: dist.Work | None = None
    receiving: dist.Work | None = None

    def settle(self) -> None:
        """Until both are done."""
        for work in (self.receiving, self.sending):
            if work is not None:
                work.wait()
        self.sending = self.receiving = None


def _lanes(geometry: Geometry, peers: int) -> list[list[_Lane]]:
    """[micro-batch][peer]"""
    return [
        [_Lane(_Packed(geometry), _Packed(geometry)) for _ in range(peers)]
        for _ in range(geometry.micro_batches)
    ]


class GlooAttention:
    def __init__(self, geometry: Geometry) -> None:
        self._source = _Source(geometry)
        self._first_expert = geometry.num_attention
        self._lanes = _lanes(geometry, geometry.num_expert)

    def run(self, exchange: Exchange) -> Times:
        times = Times([0] * exchange.count, [0] * exchange.count, [])
        part = self._source.part(exchange.rows)
        window = min(exchange.window, exchange.count)
        for number in range(exchange.count + window):
            if number >= window:
                self._combine(number - window, part, exchange)
                times.ended[number - window] = time.monotonic_ns()
            if number < exchange.count:
                hidden = self._source.hidden(number, exchange.rows)
                times.started[number] = time.monotonic_ns()
                for node in range(len(self._lanes[0])):
                    self._dispatch(number, node, hidden, part, exchange)
        return times

    def _dispatch(
        self, number: int, node: int, hidden: Tensor, part: Part, exchange: Exchange
    ) -> None:
        micro_batch, rows = number % exchange.window, exchange.rows
        lane, rank = self._lanes[micro_batch][node], self._first_expert + node
        torch.index_select(hidden, 0, part.rows, out=lane.dispatch.hidden(rows))
        ids, weights = lane.dispatch.ids_and_weights(rows)
        ids.copy_(part.local_ids)
        weights.copy_(part.weights)
        lane.sending = dist.isend(lane.dispatch.dispatch(rows), rank, tag=micro_batch)
        reply = lane.reply.reply(rows, exchange.combine)
        lane.receiving = dist.irecv(reply, rank, tag=micro_batch)

    def _combine(self, number: int, part: Part, exchange: Exchange) -> None:
        for lane in self._lanes[number % exchange.window]:
            lane.settle()
            if exchange.combine:
                out = self._source.out[: exchange.rows]
                out.index_add_(0, part.rows, lane.reply.hidden(exchange.rows))

    def close(self) -> None:
        dist.destroy_process_group()


class GlooExpert:
    def __init__(self, geometry: Geometry) -> None:
        self._lanes = _lanes(geometry, geometry.num_attention)
        self._num_attention = geometry.num_attention

    def run(self, exchange: Exchange) -> Times:
        times = Times([], [], [[0] * exchange.count for _ in range(self._num_attention)])
        for number in range(min(exchange.window, exchange.count)):
            for source in range(self._num_attention):
                self._expect(number, source, exchange)
        for number in range(exchange.count):
            for source in range(self._num_attention):
                self._serve(number, source, exchange, times)
        for lanes in self._lanes:
            for lane in lanes:
                lane.settle()
        return times

    def _expect(self, number: int, source: int, exchange: Exchange) -> None:
        micro_batch = number % exchange.window
        lane = self._lanes[micro_batch][source]
        lane.receiving = dist.irecv(lane.dispatch.dispatch(exchange.rows), source, tag=micro_batch)

    def _serve(self, number: int, source: int, exchange: Exchange, times: Times) -> None:
        micro_batch, rows = number % exchange.window, exchange.rows
        lane = self._lanes[micro_batch][source]
        lane.settle()
        hidden = lane.dispatch.hidden(rows)
        _check(number, hidden, *lane.dispatch.ids_and_weights(rows))
        times.read[source][number] = time.monotonic_ns()
        if exchange.combine:
            torch.add(hidden, 1, out=lane.reply.hidden(rows))
        reply = lane.reply.reply(rows, exchange.combine)
        lane.sending = dist.isend(reply, source, tag=micro_batch)
        if number + exchange.window < exchange.count:
            self._expect(number + exchange.window, source, exchange)

    def close(self) -> None:
        dist.destroy_process_group()


def latencies(
    exchange: Exchange, attention: Sequence[Times], experts: Sequence[Times], skip: int
) -> list[int]:
    """ns of each message: until it was read, or until its replies were combined; those of each
    pair but the first `skip`."""
    if exchange.combine:
        series = [(own.started, own.ended) for own in attention]
    else:
        series = [
            (own.started, reads)
            for expert in experts
            for own, reads in zip(attention, expert.read, strict=True)
        ]
    return [
        end - start
        for starts, ends in series
        for start, end in zip(starts[skip:], ends[skip:], strict=True)
    ]
