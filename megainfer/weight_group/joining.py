"""A group of torch.distributed beside whichever others a process has."""

from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroup
from torch.distributed.distributed_c10d import _new_process_group_helper, _world
from torch.distributed.rendezvous import rendezvous

from megainfer.weight_group.wishes import BroadcastWeights, Group


def join_group(group: Group, rank: int | None = None) -> ProcessGroup:
    """Join it; returns when all have. rank: instead of the group's own: 0 for who sends, and opens
    the store at the group's address.

    As SGLang and the trainers that know it (`init_custom_process_group`) do it, whose members meet
    ours: torch's own function makes one group a process only. Raises what torch does.
    """
    own, most = group.rank if rank is None else rank, timedelta(seconds=group.seconds)
    place = f"tcp://{group.address}:{group.port}"
    store, own, size = next(rendezvous(place, own, group.world_size, timeout=most))
    store.set_timeout(most)
    made, _ = _new_process_group_helper(
        size,
        own,
        [],
        dist.Backend(group.backend),
        PrefixStore(group.name, store),
        group_name=group.name,
        timeout=most,
    )
    _world.pg_group_ranks[made] = {rank: rank for rank in range(size)}
    return made


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
