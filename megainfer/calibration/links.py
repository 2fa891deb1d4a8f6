"""Messages between two processes of this machine, over the very ports that nodes have."""

import secrets
from collections.abc import Sequence
from functools import partial
from statistics import median
from time import monotonic

import torch

from megainfer.calibration.measured import Exchanged
from megainfer.errors import NodeDied
from megainfer.expert_node.transfer_profile import answer_transfers
from megainfer.launch.plan import SPIN_SECONDS
from megainfer.launch.station import Station
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Part
from megainfer.m2n.roads import PortOptions, Road, Seat, open_attention_port, open_expert_port
from megainfer.messages.from_child import Stats
from megainfer.messages.message import Role
from megainfer.supervise.child import Child, fork_child
from megainfer.topology import assign_cores, have_own_cores

HIDDEN = 2048
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MESSAGES = 24
WARM = 4
SECONDS = 30.0
"""The bound of every wait; none is expected to come near it."""
END_SECONDS = 2.0
"""For one that has told all to end by itself."""


def measure_links(cores: Sequence[int]) -> tuple[Exchanged, ...]:
    """Between a process on the first of these cores and one on the next, or on the same where there
    is but one.

    To be called where forking is allowed (see `supervise.child.fork_process`), so before anything
    is computed here. Raises NodeDied when one of the two ends before it has answered.
    """
    assigned = assign_cores(2, tuple(cores))
    spin = SPIN_SECONDS if have_own_cores(assigned) else 0.0
    road = Road("shm", f"calibrate-{secrets.token_hex(8)}", PortOptions(spin))
    mains = (partial(_attention, road=road), partial(_expert, road=road))
    children = list[Child]()
    try:
        for role, main, own in zip((Role.ATTENTION, Role.EXPERT), mains, assigned, strict=True):
            children.append(fork_child(role, 0, main, own, tuple(children)))
        told = children[0].link.expect(Stats, SECONDS).counters["links"]["exchanged"]
        return tuple(Exchanged(**each) for each in told)
    finally:
        for child in children:
            if not child.reap(END_SECONDS):
                child.kill()
                child.reap(SECONDS)
            child.forget()


def _geometry() -> Geometry:
    return Geometry(
        num_attention=1,
        num_expert=1,
        micro_batches=1,
        capacity=max(ROWS),
        hidden_size=HIDDEN,
        top_k=4,
        dtype="bfloat16",
    )


def _expert(station: Station, road: Road) -> None:
    torch.set_num_threads(1)  # as nodes with kernels of their own
    port = open_expert_port(road, Seat(_geometry(), 0), SECONDS)
    answer_transfers(port, 1)
    port.close()


def _attention(station: Station, road: Road) -> None:
    torch.set_num_threads(1)
    geometry = _geometry()
    port = open_attention_port(road, Seat(geometry, 0), SECONDS)
    exchanged = [_exchange(port, geometry, rows) for rows in ROWS]
    port.rest(0)
    station.link.send(Stats(None, {"links": {"exchanged": exchanged}}))
    port.close()


def _exchange(port: AttentionPort, geometry: Geometry, rows: int) -> dict[str, float]:
    """`Exchanged`'s fields."""
    hidden = torch.ones(rows, geometry.hidden_size, dtype=torch.bfloat16)
    out = torch.zeros(rows, geometry.hidden_size)
    choices = (rows, geometry.top_k)
    part = Part(torch.arange(rows), torch.zeros(choices, dtype=torch.int32), torch.zeros(choices))
    taken = list[tuple[float, float]]()
    for _ in range(WARM + MESSAGES):
        began = monotonic()
        handle = port.dispatch(0, 0, hidden, [part])
        sent = monotonic()
        _await_reply(port)
        arrived = monotonic()
        port.combine(handle, out)
        taken.append((sent - began, monotonic() - arrived))
    packing, unpacking = (median(own) for own in zip(*taken[WARM:], strict=True))
    row_bytes = geometry.rows_bytes(rows) // rows
    return {
        "rows": rows,
        "row_bytes": row_bytes,
        "packing": packing,
        "unpacking": unpacking,
    }


def _await_reply(port: AttentionPort) -> None:
    deadline = monotonic() + SECONDS
    while not port.poll():
        if port.lost_peers() or monotonic() > deadline:
            raise NodeDied("messages can't be measured: the other process does not answer")
        port.wait(deadline - monotonic())
