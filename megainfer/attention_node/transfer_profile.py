"""T_c as this instance has it: messages to and fro between its very nodes, before they serve."""

import math
import time
from collections.abc import Sequence
from statistics import median
from time import monotonic

import torch

from megainfer.device import Device, settle
from megainfer.errors import NodeDied
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Part

ROUND_TRIPS = 40
ROUND_TRIPS_ASLEEP = 16
NAP = 1.25
"""Of the time that a node looks for messages before it sleeps."""
TIMEOUT_SECONDS = 30.0


def profile_transfer(
    port: AttentionPort, geometry: Geometry, rows: Sequence[int]
) -> list[tuple[int, float]]:
    """(rows, seconds one way) of micro-batches of so many: half a round trip to all expert nodes,
    which reply at once (`expert_node.transfer_profile`).

    Raises NodeDied when one is gone or doesn't answer.
    """
    return [(count, median(_round_trips(port, geometry, count, ROUND_TRIPS)) / 2) for count in rows]


def profile_waking(port: AttentionPort, geometry: Geometry, spin_seconds: float) -> float:
    """By how many seconds a dispatch takes longer to expert nodes that have gone to sleep.

    spin_seconds: for how long they look for messages before. Raises as `profile_transfer`.
    """
    awake = median(_round_trips(port, geometry, 1, ROUND_TRIPS_ASLEEP))
    asleep = median(_round_trips(port, geometry, 1, ROUND_TRIPS_ASLEEP, NAP * spin_seconds))
    return max(0.0, asleep - awake)


def sent_rows(rows: int, geometry: Geometry) -> int:
    """How many of so many rows each expert node is sent, where tokens choose evenly.

    >>> sent_rows(16, Geometry(1, 2, 1, 16, hidden_size=8, top_k=2, dtype="float32"))
    12
    """
    elsewhere = (1 - 1 / geometry.num_expert) ** geometry.top_k
    return math.ceil(rows * (1 - elsewhere))


def _round_trips(
    port: AttentionPort, geometry: Geometry, rows: int, count: int, nap_seconds: float = 0.0
) -> list[float]:
    """Seconds of each; before each, the expert nodes are left alone for `nap_seconds`."""
    hidden = torch.zeros(rows, geometry.hidden_size, dtype=getattr(torch, geometry.dtype))
    hidden = port.device.upload(hidden)
    sent = sent_rows(rows, geometry)
    part = _part(sent, geometry) if port.device.is_host else _padded(rows, sent, geometry)
    parts = [_uploaded(part, port.device)] * geometry.num_expert
    seconds = []
    for _ in range(count):
        time.sleep(nap_seconds)
        started = monotonic()
        handle = port.dispatch(0, 0, hidden, parts)
        _await_replies(port, started + TIMEOUT_SECONDS, geometry.num_expert)
        port.combine(handle, hidden)
        settle(port.device)
        seconds.append(monotonic() - started)
    return seconds


def _part(rows: int, geometry: Geometry) -> Part:
    choices = (rows, geometry.top_k)
    return Part(torch.arange(rows), torch.zeros(choices, dtype=torch.int32), torch.zeros(choices))


def _padded(tokens: int, rows: int, geometry: Geometry) -> Part:
    """The same of a device, which tells no host that there are no more than these rows."""
    numbers, choices = torch.arange(tokens), (tokens, geometry.top_k)
    behind = numbers >= rows
    return Part(
        rows=numbers.masked_fill(behind, 0),
        local_ids=torch.zeros(choices, dtype=torch.int32).masked_fill(behind[:, None], -1),
        weights=torch.zeros(choices),
        count=torch.tensor([rows], dtype=torch.int32),
        places=numbers.to(torch.int32).masked_fill(behind, -1),
    )


def _uploaded(part: Part, device: Device) -> Part:
    every = (tensor if tensor is None else device.upload(tensor) for tensor in part)
    return Part._make(every)


def _await_replies(port: AttentionPort, deadline: float, missing: int) -> None:
    while missing := missing - len(port.poll()):
        if (lost := port.lost_peers()) or monotonic() > deadline:
            who = f"expert nodes {sorted(lost)} are gone" if lost else "they do not answer"
            raise NodeDied(f"the transfers to expert nodes cannot be measured: {who}")
        port.wait(deadline - monotonic())
