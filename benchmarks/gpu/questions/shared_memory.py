"""Whether memory of a GPU that a process has shared outlives that process's SIGKILL.

The owner is a process of its own: `python -m gpu.questions.shared_memory DESCRIPTOR`.
"""

import io
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

from megainfer.device.cuda import CudaDevice
from megainfer.m2n.geometry import PayloadRoom
from megainfer.m2n.ipc.cuda_driver import CudaDriver
from megainfer.m2n.ipc.cuda_memory import CudaMemory
from megainfer.m2n.slotted.payloads import StridedPayloads

ROOM = PayloadRoom(slots=1, stride=1 << 20)
SECONDS = 30.0
OWNERS, PEERS = 7, 9


def survives_its_exporter() -> dict[str, bool]:
    """Whether what the owner wrote is read before and after its death, and can be written then."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(SECONDS)
        owner = subprocess.Popen(
            [sys.executable, "-m", "gpu.questions.shared_memory", str(theirs.fileno())],
            cwd=Path(__file__).parents[2],
            pass_fds=[theirs.fileno()],
        )
        try:
            uuid, (descriptor, *_), _, _ = socket.recv_fds(ours, 16, 1)
            memory = CudaMemory(CudaDevice(), CudaDriver.load())
            with io.FileIO(descriptor, "r+") as file:
                seen = _bytes(memory.adopt(file, ROOM, uuid))
        finally:
            owner.send_signal(signal.SIGKILL)
            owner.wait(SECONDS)
        before = bool((seen == OWNERS).all())
    after = bool((seen == OWNERS).all())
    seen.fill_(PEERS)
    return {"before": before, "after": after, "written": bool((seen == PEERS).all())}


def _own(descriptor: int) -> None:
    """Share memory, and wait for the end."""
    memory = CudaMemory(CudaDevice(), CudaDriver.load())
    payloads = memory.allocate(ROOM)
    _bytes(payloads).fill_(OWNERS)
    torch.cuda.synchronize()
    with socket.socket(fileno=descriptor) as peer:
        socket.send_fds(peer, [memory.uuid], [payloads.fileno()])
        peer.recv(1)


def _bytes(payloads: StridedPayloads) -> torch.Tensor:
    return payloads.tensor(0, 0, torch.uint8, (1, ROOM.stride))


if __name__ == "__main__":
    _own(int(sys.argv[1]))
