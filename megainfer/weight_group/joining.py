"""A group of torch.distributed beside whichever others a process has."""

import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import _new_process_group_helper, _world

from megainfer.weight_group.wishes import BroadcastWeights, Group

_make: Any = _new_process_group_helper  # typed differently from release to release


def join_group(group: Group, rank: int | None = None) -> ProcessGroup:
    """Join it; returns when all have. rank: instead of the group's own: 0 for who sends, and opens
    the store at the group's address.

    As SGLang and the trainers that know it (`init_custom_process_group`) do it, whose members meet
    ours: torch's own function makes one group a process only. Raises what torch does.
    """
    own, most = group.rank if rank is None else rank, timedelta(seconds=group.seconds)
    made: ProcessGroup
    made, _ = _make(
        group.world_size,
        own,
        [],
        dist.Backend(group.backend),
        PrefixStore(group.name, _store(group, own, most)),
        group_name=group.name,
        timeout=most,
    )
    _world.pg_group_ranks[made] = {rank: rank for rank in range(group.world_size)}
    return made


def _store(group: Group, rank: int, most: timedelta) -> TCPStore:
    """As torch's `rendezvous` makes it, but that it listens at the group's address only, and that
    a trainer whom torchrun has started, whose own store is elsewhere, opens one all the same."""
    listener = None
    if rank == 0:
        kind = socket.AF_INET6 if ":" in group.address else socket.AF_INET
        place = group.address.strip("[]"), group.port
        listener = socket.create_server(place, family=kind).detach()
    return TCPStore(
        group.address,
        group.port,
        group.world_size,
        is_master=rank == 0,
        timeout=most,
        master_listen_fd=listener,
    )


def announced(tensors: Mapping[str, Tensor]) -> BroadcastWeights:
    """What `broadcast` sends, for who is to take it."""
    rows = [(name, dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()]
    names, dtypes, shapes = zip(*rows, strict=True) if rows else ((), (), ())
    return BroadcastWeights.of(names, dtypes, shapes)


def broadcast(group: ProcessGroup, tensors: Mapping[str, Tensor]) -> None:
    """Send them, in their order, as rank 0. Raises what torch does where a member has died, or
    doesn't take them in the group's time."""
    for tensor in tensors.values():
        dist.broadcast(tensor.detach().contiguous(), 0, group)


def dtype_name(dtype: torch.dtype) -> str:
    """
    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")
