"""Ranks of a node as processes of their own, each with its part of an attention half: as one rank
computes it.

    python -m tests.support.rank_groups nccl path/to/model bfloat16

It says `right`, or how far the two are apart. By NCCL the ranks share one GPU, each on a host of
its own as far as NCCL knows: only whether it works can be seen so.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from megainfer.attention_node.process import load_attention
from megainfer.attention_node.ranks.leading import ALONE, HalfRanks, Rank
from megainfer.compute.backend import Backend
from megainfer.config import EngineConfig
from megainfer.device import Device
from megainfer.launch.machine import read_machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.launch.ranks.seats import FollowingSeat, RankSeats
from megainfer.ranks.layout import HalfLayout
from megainfer.topology import Shard
from tests.support.fake_groups import PretendGpu
from tests.support.gpus import NCCL_ON_ONE_GPU
from tests.support.m2n_cluster import fork
from tests.support.ranks import half_follower, outputs_of, unheard

RANKS = 2
NEAR = {"float32": 1e-4, "bfloat16": 0.03}
PROMPTS = [[*range(1, length)] for length in (4, 15, 2)]


def main(kind: str, folder: str, dtype: str) -> None:
    apart = distance(kind, folder, dtype)
    print("right" if 0 < apart < NEAR[dtype] else f"they are {apart:.1e} apart")


def distance(kind: str, folder: str, dtype: str) -> float:
    """How far what ranks compute is from what one does, by the largest number."""
    config = EngineConfig(
        folder, attn_tp=RANKS, device="cpu", dtype=dtype, max_num_batched_tokens=32
    )
    plan = make_plan(config, Path(folder), read_machine())
    seats = RankSeats(replace(plan.half_layout, dtype=dtype))
    # Before anybody has initialised CUDA, which no fork survives.
    others = [fork(follow, plan, kind, seat) for seat in seats.others]
    try:
        backend = backend_of(kind, dtype, rank=0)
        ranks = HalfRanks(seats.leading, 0, plan.spec, 0.0, backend.device)
        model, kv = load_attention(plan, backend, unheard, rank=Rank(Shard(0, RANKS), ranks))
        ranks.await_loaded()
        summed = outputs_of(model, kv, PROMPTS)
        ranks.close()
        alone = outputs_of(*load_attention(plan, backend, unheard, rank=ALONE), PROMPTS)
    finally:
        for other in others:
            other.kill()
    pairs = zip(summed, alone, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.abs().max()) for a, b in pairs)


def follow(plan: Plan, kind: str, seat: FollowingSeat[HalfLayout]) -> None:
    follower = half_follower(plan, backend_of(kind, plan.dtype, seat.rank), seat)
    while True:
        follower.turn(1.0)


def backend_of(kind: str, dtype: str, rank: int) -> Backend:
    """On what this process computes."""
    from megainfer.compute.gpu.backend import GpuBackend  # Triton's

    device: Device = PretendGpu()
    if kind == "nccl":
        from megainfer.device.cuda import CudaDevice

        os.environ.update(NCCL_ON_ONE_GPU, NCCL_HOSTID=f"rank-{rank}")
        device = CudaDevice()
    return GpuBackend(getattr(torch, dtype), dtype, device)


if __name__ == "__main__":
    main(*sys.argv[1:])
