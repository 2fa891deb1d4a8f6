"""T_c as this machine has it: messages to and fro between this process and one on other cores."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from statistics import median
from time import monotonic

import torch

from megainfer.errors import NodeDied
from megainfer.launch.plan import Plan
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import Dispatch, Part
from megainfer.m2n.shm.ports import ShmAttentionPort, ShmExpertPort, ShmListener, expert_address
from megainfer.m2n.slotted.opening import Tuning
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
    with _partner(geometry, plan.cores_of_attention(0), Tuning(spin_seconds)) as port:
        return {count: _median_round_trip(port, geometry, count) / 2 for count in rows}


def _median_round_trip(port: ShmAttentionPort, geometry: Geometry, rows: int) -> float:
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
def _partner(
    geometry: Geometry, cores: CoreAssignment, tuning: Tuning
) -> Iterator[ShmAttentionPort]:
    """A port to a child process on `cores` that answers everything at once."""
    address = expert_address(f"profile-{secrets.token_hex(16)}", 0)
    listener = ShmListener.create(address)
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setaffinity(0, cores.cores)
            _answer_all(listener, geometry, tuning)
        finally:
            os._exit(0)  # never into the parent's code
    listener.close()
    try:
        port = ShmAttentionPort.connect([address], geometry, 0, 0, TIMEOUT_SECONDS, tuning)
        with contextlib.closing(port):
            yield port
    finally:
        os.waitpid(pid, 0)


def _answer_all(listener: ShmListener, geometry: Geometry, tuning: Tuning) -> None:
    """Until the other side leaves or says nothing for too long."""
    port = ShmExpertPort.accept(listener, geometry, 0, 0, TIMEOUT_SECONDS, tuning)
    heard = monotonic()
    while not port.lost_peers() and monotonic() - heard < TIMEOUT_SECONDS:
        for message in port.receive():
            heard = monotonic()
            if isinstance(message, Dispatch):
                port.reply_buffer(message).zero_()
                port.reply(message)
        port.wait(TIMEOUT_SECONDS)
