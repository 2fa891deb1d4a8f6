"""Process groups: torch's, over gloo between CPUs and over NCCL between GPUs.

A pair of nodes makes two of two ranks, one a direction. So no receive that waits holds back a send
of the other direction, and the death of a node ends no group but its own. None needs a default
group.
"""

import os
from datetime import timedelta
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store

from megainfer.device import HOST, Device
from megainfer.errors import ConfigError, NodeDied
from megainfer.m2n.dist.channel import Channel, Completion, Group, plain_words, polled, waited
from megainfer.m2n.dist.pair_store import PairStore

GROUP_SECONDS = 10.0
"""How long a payload may take once it was announced. Whoever takes longer is as good as gone: its
group is closed, and no other's."""
CODES = {"gloo": 3, "nccl": 2}
"""Kind of group -> code on the wire; another one where another is what both ends post (1 was gloo
without tags)."""
_NCCL_DEFAULTS = {
    # Deadlines are ours; torch's own would end the process for one dead peer.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # A blocked kernel must not hold back another stream's.
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",
}
_DIRECTIONS = {True: "from-caller", False: "from-listener"}
"""By whether it is the side that has connected which sends."""


class Groups(Protocol):
    """How one kind of group is made."""

    kind: str
    completion: Completion
    tags: bool  # whether payloads can be told apart by tags

    @property
    def device(self) -> Device:
        """Whose memory payloads are in."""

    def make(self, store: Store, rank: int, ranks: int = 2) -> Group:
        """Of so many ranks; returns when all have called it, or on first use waits for those that
        have not. Raises RuntimeError."""

    def close(self) -> None:
        """No more are made."""


class GlooGroups:
    """`Groups` over TCP, between hosts' memories. host: the address that they listen at. seconds:
    that a payload may take, GROUP_SECONDS if None."""

    kind = "gloo"
    device = HOST
    tags = True

    def __init__(self, host: str, seconds: float | None = None) -> None:
        self.completion: Completion = waited
        self._seconds = GROUP_SECONDS if seconds is None else seconds
        try:
            self._transports = [dist.ProcessGroupGloo.create_device(hostname=host)]
        except RuntimeError as error:
            raise ConfigError(f"gloo cannot listen at {host!r}: {error}") from error

    def make(self, store: Store, rank: int, ranks: int = 2) -> Group:
        """See `Groups.make`."""
        # The only way to say where gloo listens; torch's declarations leave it out.
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = self._transports  # one listener and thread for all of a node's pairs
        options._threads = 1
        options._timeout = timedelta(seconds=self._seconds)
        return cast(Group, dist.ProcessGroupGloo(store, rank, ranks, options))

    def close(self) -> None:
        """See `Groups.close`; its listener is closed with the last group."""
        self._transports = []


class NcclGroups:
    """`Groups` between GPUs; which interface they take is NCCL's to choose (NCCL_SOCKET_IFNAME).
    ctas: blocks of threads of a group, each of which takes memory, and a multiprocessor while it is
    at work."""

    kind = "nccl"
    tags = False  # a receive that is posted early would keep a kernel waiting, too

    def __init__(self, device: Device, ctas: int = 1) -> None:
        self.device = device
        self._ctas = ctas
        self.completion: Completion = polled
        for name, value in _NCCL_DEFAULTS.items():
            os.environ.setdefault(name, value)

    def make(self, store: Store, rank: int, ranks: int = 2) -> Group:
        """See `Groups.make`."""
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=GROUP_SECONDS)
        options.config.min_ctas, options.config.max_ctas = 1, self._ctas
        return cast(Group, dist.ProcessGroupNCCL(store, rank, ranks, options))

    def close(self) -> None:
        """See `Groups.close`; there is nothing beside the groups."""


def groups_for(kind: str, host: str, device: Device | None) -> Groups:
    """kind: one of `CODES`. device: on which the node computes, None for the host.

    Raises ConfigError where there is no such kind, or it doesn't join such devices.
    """
    if kind == "gloo":
        return GlooGroups(host)
    if kind != "nccl":
        raise ConfigError(f"M2N has no groups {kind!r}; it has: {', '.join(CODES)}")
    if device is None or device.torch.type != "cuda" or not dist.is_nccl_available():
        name = "the host" if device is None else device.name
        raise ConfigError(
            f"groups 'nccl' join nodes on NVIDIA GPUs, with a torch that has NCCL; this node is on "
            f"{name}: take 'gloo'"
        )
    return NcclGroups(device)


def open_channels(groups: Groups, store: PairStore, *, calls: bool) -> tuple[Channel, Channel]:
    """(to the peer, from the peer), each of which has carried something. calls: whether this is the
    side that has connected.

    Raises NodeDied where the peer doesn't make them too, in time.
    """
    rank = 0 if calls else 1
    made = {side: _channel(groups, store, rank, name) for side, name in _DIRECTIONS.items()}
    for side, channel in made.items():  # connections, and communicators, are made by first use
        _warm(channel, groups.device, sends=side is calls)
    return made[calls], made[not calls]


def _channel(groups: Groups, store: PairStore, rank: int, name: str) -> Channel:
    prefixed = PrefixStore(name, store)
    try:
        group = groups.make(prefixed, rank)
    except RuntimeError as error:
        raise NodeDied(f"a {groups.kind} group was not made: {plain_words(error)}") from error
    kept = store, prefixed
    return Channel(group, 1 - rank, groups.completion, groups.device, kept, groups.tags)


def _warm(channel: Channel, device: Device, *, sends: bool) -> None:
    with torch.inference_mode(False):
        payload = device.empty((1,), torch.uint8)
    if sends:
        channel.await_sent(channel.send(payload), GROUP_SECONDS)
    else:
        channel.receive(payload, GROUP_SECONDS)
