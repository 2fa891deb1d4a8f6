"""Ports over either transport, in one process or in several, for the tests of M2N."""

import contextlib
import gc
import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from megainfer.m2n.geometry import Geometry
from megainfer.m2n.local import LocalHub
from megainfer.m2n.mailbox import Arrival, AttentionPort, Dispatch, ExpertPort, Handle, Part
from megainfer.m2n.reference import Expert, ExpertChoices, serve
from megainfer.m2n.roads import (
    DEFAULT_OPTIONS,
    PortOptions,
    Road,
    Seat,
    open_attention_port,
    open_expert_port,
)
from megainfer.m2n.slotted import native_library

IMPLEMENTATIONS = [
    "plain",
    pytest.param(
        "native",
        marks=pytest.mark.skipif(not native_library.is_built(), reason="M2N is not built"),
    ),
]
"""Who moves the messages."""
SECONDS = 30.0  # the bound of every wait; none is expected to come near it
KEY = "0123456789abcdef" * 2  # of roads that need one
_numbers = itertools.count()


def fresh_token() -> str:
    return f"test-{os.getpid()}-{next(_numbers)}"


def road_of(kind: str, options: PortOptions = DEFAULT_OPTIONS, token: str | None = None) -> Road:
    """One of nobody else's."""
    return Road(kind, token or fresh_token(), options, KEY if kind in ("dist", "mixed") else "")


@dataclass(frozen=True)
class Cluster:
    geometry: Geometry
    attention: Sequence[AttentionPort]
    experts: Sequence[ExpertPort]


@contextlib.contextmanager
def local_cluster(geometry: Geometry, mover: str | None = None) -> Iterator[Cluster]:
    hub = LocalHub(geometry, mover=mover)
    yield Cluster(
        geometry,
        [hub.attention_port(i) for i in range(geometry.num_attention)],
        [hub.expert_port(n) for n in range(geometry.num_expert)],
    )


@contextlib.contextmanager
def shm_cluster(
    geometry: Geometry,
    attention: PortOptions = DEFAULT_OPTIONS,
    expert: PortOptions = DEFAULT_OPTIONS,
    kind: str = "shm",
) -> Iterator[Cluster]:
    """Memory, bells and connections as between processes, but all ports in this one.

    kind: "shm", or another road whose payloads are not in slots.
    """
    geometry = geometry if kind in ("shm", "mixed") else geometry.on_devices
    token = fresh_token()
    experts: dict[int, ExpertPort] = {}

    def meet(node: int) -> None:
        experts[node] = open_expert_port(
            road_of(kind, expert, token), Seat(geometry, node, 0), SECONDS
        )

    threads = [threading.Thread(target=meet, args=(n,)) for n in range(geometry.num_expert)]
    for thread in threads:
        thread.start()
    attention_ports = [
        open_attention_port(road_of(kind, attention, token), Seat(geometry, i, 0), SECONDS)
        for i in range(geometry.num_attention)
    ]
    for thread in threads:
        thread.join(SECONDS)
    cluster = Cluster(geometry, attention_ports, [experts[n] for n in range(geometry.num_expert)])
    try:
        yield cluster
    finally:
        for port in (*cluster.attention, *cluster.experts):
            port.close()


def serve_all(port: ExpertPort, node: int, expert: Expert) -> list[Dispatch]:
    """Answer what has arrived; returns all dispatches, with copies of their tensors."""
    seen = []
    for message in port.receive():
        assert isinstance(message, Dispatch)
        copies = [t.clone() for t in (message.hidden, message.local_ids, message.weights)]
        seen.append(
            Dispatch(message.source, message.micro_batch, message.layer, message.sequence, *copies)
        )
        if message.num_rows:
            reply = serve(node, message.hidden, message.local_ids, message.weights, expert)
            port.reply_buffer(message).copy_(reply)
            port.reply(message)
    return seen


def arrivals_of(port: AttentionPort, handle: Handle) -> list[Arrival]:
    """Wait for all replies to `handle`, the only dispatch in flight."""
    arrived: list[Arrival] = []
    while {a.expert_node for a in arrived} != handle.awaiting:
        port.wait(SECONDS)
        assert not port.lost_peers()
        arrived += port.poll()
    return arrived


def padded(part: Part, capacity: int) -> Part:
    """`part` as a device hands it over that tells no host how many rows there are."""
    count, top_k = part.local_ids.shape
    blank = torch.full((capacity - count, top_k), -1, dtype=torch.int32)
    return Part(
        torch.cat([part.rows, torch.zeros(capacity - count, dtype=torch.int64)]),
        torch.cat([part.local_ids, blank]),
        torch.cat([part.weights, torch.zeros(blank.shape)]),
        torch.tensor([count], dtype=torch.int32),
    )


def spread(num_experts: int, num_nodes: int) -> tuple[tuple[int, int], ...]:
    """Homes of experts dealt out in turn: (node, local id) of each."""
    return tuple((e % num_nodes, e // num_nodes) for e in range(num_experts))


def affine_expert(homes: tuple[tuple[int, int], ...]) -> Expert:
    """Every expert does something of its own, so that a wrong one can't go unnoticed."""
    numbers = {home: number for number, home in enumerate(homes)}

    def expert(node: int, local: int, token: Tensor) -> Tensor:
        number = numbers[node, local]
        return token * (number + 2) + number

    return expert


def random_routing(
    num_tokens: int, top_k: int, homes: tuple[tuple[int, int], ...], generator: torch.Generator
) -> ExpertChoices:
    scores = torch.rand(num_tokens, len(homes), generator=generator)
    weights, expert_ids = scores.topk(top_k, dim=1)
    return ExpertChoices(expert_ids, weights, homes)


def fork(target: Callable[..., None], *args: object) -> multiprocessing.Process:
    """Start `target` in a forked process of one compute thread."""
    process = multiprocessing.get_context("fork").Process(
        target=_single_threaded, args=(target, *args), daemon=True
    )
    process.start()
    return process  # type: ignore[return-value]


def _single_threaded(target: Callable[..., None], *args: object) -> None:
    gc.freeze()  # what the parent had, and threads of it which are none here, stays as it is
    torch.set_num_threads(1)
    target(*args)


def join_all(processes: Sequence[multiprocessing.Process]) -> None:
    """All must end well, in bounded time."""
    for process in processes:
        process.join(SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(processes)
