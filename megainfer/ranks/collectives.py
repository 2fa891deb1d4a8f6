"""Collectives of all ranks of a node, of which rank 0 gives and takes."""

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, GatherOptions, Store

from megainfer.device import Device
from megainfer.errors import NodeDied
from megainfer.m2n.dist.channel import plain_words
from megainfer.m2n.dist.groups import GlooGroups, Groups, NcclGroups
from megainfer.ranks.road import ANSWER_SECONDS

CTAS = 16
"""Of NCCL's blocks of threads: they have the GPU for themselves, but each takes memory."""


class _Work(Protocol):
    def wait(self) -> bool: ...


class _Group(Protocol):
    """What is used of torch's `ProcessGroupNCCL` and `ProcessGroupGloo`. None: it lies in the
    current stream, whose later work comes after it."""

    def broadcast(self, tensors: list[Tensor], opts: BroadcastOptions) -> _Work | None: ...

    def gather(
        self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: GatherOptions
    ) -> _Work | None: ...

    def abort(self) -> None: ...


class Collectives:
    """At their place in the current stream's work: none blocks the host of a GPU. All ranks ask for
    the same ones in the same order. They raise NodeDied where another rank is known to be gone.

    The constructor returns when all ranks have called it, and each has heard the others.
    """

    def __init__(self, device: Device, store: Store, rank: int, ranks: int) -> None:
        self._device, self._store, self._leads = device, store, rank == 0
        self._groups = _groups_on(device)
        try:
            self._group = cast(_Group, self._groups.make(store, rank, ranks))
        except RuntimeError as error:
            raise NodeDied(f"ranks have not met: {plain_words(error)}") from error
        self._warm(ranks)

    def broadcast(self, payload: Tensor) -> None:
        """Rank 0's, into the others' of the same size, which lie together in memory."""
        options = BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.asyncOp = False
        try:
            _finish(self._group.broadcast([_bytes(payload)], options))
        except RuntimeError as error:
            raise NodeDied(f"rows did not reach all ranks: {plain_words(error)}") from error

    def gather(self, own: Tensor, parts: Sequence[Tensor] = ()) -> None:
        """Of all ranks what they have, of one size, into rank 0's `parts`, in the order of ranks;
        the first of these may be its own."""
        options = GatherOptions()
        options.rootRank = 0
        options.asyncOp = False
        mine = _bytes(own)
        outputs = [[mine if part is own else _bytes(part) for part in parts]] if self._leads else []
        try:
            _finish(self._group.gather(outputs, [mine], options))
        except RuntimeError as error:
            raise NodeDied(f"results of ranks did not arrive: {plain_words(error)}") from error

    def abort(self) -> None:
        """End what waits on the device for a rank that is gone."""
        if not self._device.is_host:
            self._group.abort()

    def _warm(self, ranks: int) -> None:
        """Connections, and communicators, are made by first use."""
        own, *others = self._device.empty((ranks, 1), torch.uint8)
        self.broadcast(own)
        self.gather(own, [own, *others])


def _groups_on(device: Device) -> Groups:
    """NCCL's between GPUs; where a device is the host's memory, gloo's."""
    if device.torch.type == "cuda":
        return NcclGroups(device, CTAS)
    return GlooGroups("127.0.0.1", ANSWER_SECONDS)


def _bytes(rows: Tensor) -> Tensor:
    """uint8: every kind of group has these."""
    return rows.view(-1).view(torch.uint8)


def _finish(work: _Work | None) -> None:
    """On the host, until it is done, within the group's bound."""
    if work is not None:
        work.wait()
