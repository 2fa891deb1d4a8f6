"""A node of its own process on the road `dist`, which says `right` once its messages were:

    python -m tests.support.dist_node attention|expert TOKEN gloo|nccl

Over NCCL both compute on the first GPU, each with a NCCL_HOSTID of its own.
"""

import sys
import time
from collections.abc import Callable

import torch

from megainfer.device import HOST, Device
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.mailbox import AttentionPort, Dispatch, ExpertPort, Part
from megainfer.m2n.roads import Road, Seat, open_attention_port, open_expert_port
from tests.support.m2n_cluster import KEY

GEOMETRY = Geometry(1, 1, 2, capacity=64, hidden_size=128, top_k=2, dtype="bfloat16")
ROWS = (1, 64, 3, 17)
SECONDS = 60.0


def main(role: str, token: str, groups: str) -> None:
    device = device_of(groups)
    road, seat = Road("dist", token, key=KEY, groups=groups), Seat(GEOMETRY, 0)
    if role == "expert":
        expert = open_expert_port(road, seat, SECONDS, device)
        for _ in ROWS:
            answer(expert)
        until(expert, lambda: expert.lost_peers())
        expert.close()
    else:
        attention = open_attention_port(road, seat, SECONDS, device)
        for number, rows in enumerate(ROWS):
            exchange(attention, number % GEOMETRY.micro_batches, rows)
        attention.close()
    print("right")


def device_of(groups: str) -> Device:
    if groups == "gloo":
        return HOST
    from megainfer.device.cuda import CudaDevice

    return CudaDevice()


def until(port: AttentionPort | ExpertPort, ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert time.monotonic() < deadline
        port.wait(SECONDS)


def answer(port: ExpertPort) -> None:
    found: list[Dispatch] = []

    def look() -> bool:
        found.extend(message for message in port.receive() if isinstance(message, Dispatch))
        return bool(found)

    until(port, look)
    (message,) = found
    port.reply_buffer(message).copy_(2 * message.hidden)
    port.reply(message)


def exchange(port: AttentionPort, micro_batch: int, rows: int) -> None:
    """Whole numbers, which bfloat16 doubles without rounding."""
    device, choices = port.device.torch, (rows, GEOMETRY.top_k)
    hidden = torch.randint(100, (rows, GEOMETRY.hidden_size)).bfloat16().to(device)
    part = Part(
        torch.arange(rows, device=device),
        torch.zeros(choices, dtype=torch.int32, device=device),
        torch.ones(choices, device=device),
    )
    handle = port.dispatch(micro_batch, 0, hidden, [part])
    until(port, port.poll)
    out = torch.zeros_like(hidden)
    port.combine(handle, out)
    assert torch.equal(out, 2 * hidden)


if __name__ == "__main__":
    main(*sys.argv[1:])
