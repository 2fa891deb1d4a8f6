"""Whether two NCCL ranks can share a GPU, each with a host of its own as far as NCCL knows.

Only whether it works: their kernels take turns on the GPU, so no time of it means anything. Each
rank is a process, `python -m gpu.questions.nccl RANK FILE`; they meet in the file.
"""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist

SECONDS = 30
NUMBERS = 1 << 18
SETTINGS = {
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_CUMEM_ENABLE": "0",
    "NCCL_MAX_CTAS": "1",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
}


def two_ranks() -> list[str]:
    """What each of them says."""
    with TemporaryDirectory() as folder:
        ranks = [_start(rank, Path(folder) / "meet") for rank in range(2)]
        try:
            return [rank.communicate(timeout=SECONDS)[0].strip() for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()


def _start(rank: int, file: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "gpu.questions.nccl", str(rank), str(file)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **SETTINGS, "NCCL_HOSTID": f"rank-{rank}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _rank(rank: int, file: str) -> None:
    distributed: Any = dist  # whose types lack what it has
    store = distributed.FileStore(file, 2)
    store.set_timeout(timedelta(seconds=SECONDS))
    torch.cuda.set_device(0)
    free, _ = torch.cuda.mem_get_info()
    group = distributed.ProcessGroupNCCL(store, rank, 2)
    numbers = torch.full((NUMBERS,), float(rank), device="cuda")
    started = perf_counter()
    if rank == 0:
        group.send([numbers + 5], 1, 0).wait()
    else:
        group.recv([numbers], 0, 0).wait()
    torch.cuda.synchronize()
    taken = free - torch.cuda.mem_get_info()[0]
    right = rank == 0 or bool((numbers == 5).all())
    seconds = perf_counter() - started
    print(f"rank {rank}: right: {right}, {seconds:.2f} s, {taken >> 20} MiB")


if __name__ == "__main__":
    _rank(int(sys.argv[1]), sys.argv[2])
