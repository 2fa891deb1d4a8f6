"""T_c as this machine has it: messages to and fro between this process and one on other cores."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from time import monotonic

import torch

from megainfer.errors import NodeDied
from megainfer.launch.plan import Plan
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, Part
from megainfer.m2n.roads import Road, Seat, Tuning, open_attention_port, open_expert_port
from megainfer.topology import CoreAssignment

ROUND_TRIPS = 40
TIMEOUT_SECONDS = 5.0


def profile_transfer(plan: Plan, stages: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """(rows, seconds one way): half a round trip of that many rows, there and back.

    stages: (rows, seconds) of what a receiver usually waits for. One that waits for longer than it
    may spin has to be woken.
    """
    rows = plan.profiled_rows
    waits = dict(stages)
    awake = _one_way_seconds(plan, rows, plan.spin_seconds)
    asleep = _one_way_seconds(plan, rows, 0.0)
    return [
        (count, (awake if waits[count] <= plan.spin_seconds else asleep)[count]) for count in rows
    ]


def _one_way_seconds(plan: Plan, rows: list[int], spin_seconds: float) -> dict[int, float]:
    spec = plan.spec
    geometry = Geometry(1, 1, 1, max(rows), spec.hidden_size, spec.top_k, plan.dtype)
    token = f"profile-{secrets.token_hex(16)}"
    road = replace(plan.road, token=token, tuning=Tuning(spin_seconds))
    with _partner(road, Seat(geometry, 0, 0), plan.cores_of_attention(0)) as port:
        return {count: _median_round_trip(port, geometry, count) / 2 for count in rows}


def _median_round_trip(port: AttentionPort, geometry: Geometry, rows: int) -> float:
    hidden = torch.zeros(rows, geometry.hidden_size, dtype=getattr(torch, geometry.dtype))
    choices = (rows, geometry.top_k)
    part = Part(torch.arange(rows), torch.zeros(choices, dtype=torch.int32), torch.zeros(choices))
    out = torch.zeros_like(hidden)
    samples = []
    for _ in range(ROUND_TRIPS):
        started = monotonic()
        handle = port.dispatch(0, 0, hidden, [part])
        while not port.poll():
            if port.lost_peers() or monotonic() - started > TIMEOUT_SECONDS:
                raise NodeDied("the process that answers the transfer profile is gone")
            port.wait(TIMEOUT_SECONDS)
        port.combine(handle, out)
        samples.append(monotonic() - started)
    return median(samples)


@contextlib.contextmanager
def _partner(road: Road, seat: Seat, cores: CoreAssignment) -> Iterator[AttentionPort]:
    """A port to a child process on `cores` that answers everything at once."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, cores.cores)
            _answer_all(road, seat)
        finally:
            os._exit(0)  # never into the parent's code
    try:
        port = open_attention_port(road, seat, TIMEOUT_SECONDS)
        with contextlib.closing(port):
            yield port
    finally:
        os.waitpid(pid, 0)


def _answer_all(road: Road, seat: Seat) -> None:
    """Until the other side leaves or says nothing for too long."""
    port = open_expert_port(road, seat, TIMEOUT_SECONDS)
    heard = monotonic()
    while not port.lost_peers() and monotonic() - heard < TIMEOUT_SECONDS:
        for message in port.receive():
            heard = monotonic()
            if isinstance(message, Dispatch):
                port.reply_buffer(message).zero_()
                port.reply(message)
        port.wait(TIMEOUT_SECONDS)
