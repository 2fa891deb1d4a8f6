"""Colocated nodes whose stages take set times: data parallel attention, experts spread over all.

Each of n processes has attention for requests of its own and its share of every layer's experts.
Between both halves of a layer all exchange rows by the collective that torch.distributed has for
it, `all_to_all_single` over gloo; so all go at the pace of the slowest. With two micro-batches one
is exchanged while the other computes. Stages are those of `synthetic`: they sleep to a deadline.
"""

import ctypes
import multiprocessing
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

import torch
import torch.distributed as dist
from choosing import Chooser, Choosing, ChosenExperts, sleep_until
from synthetic import HIDDEN_SIZE, PR_SET_TIMERSLACK, TIMEOUT_SECONDS
from torch import Tensor

from megainfer.errors import NodeDied
from megainfer.m2n.mailbox import Dispatch, Part


@dataclass(frozen=True)
class SpreadStages:
    """What to run. rows: of one process's micro-batch. attention: seconds of a layer for these."""

    processes: int
    micro_batches: int
    layers: int
    rows: int
    attention: float
    choosing: Choosing


class SpreadCluster:
    """The processes. To be made in a process without threads, which it forks."""

    def __init__(self, stages: SpreadStages) -> None:
        context = multiprocessing.get_context("fork")
        self.stages = stages
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(stages.processes):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_main, args=(stages, rank, f"{self._folder.name}/store", theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, steps: int) -> float:
        """Seconds that so many steps of all micro-batches take."""
        for pipe in self._pipes:
            pipe.send(steps)
        return max(self._answer(pipe, steps) for pipe in self._pipes)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(0)
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            process.join(TIMEOUT_SECONDS)
            process.kill()
            pipe.close()
        self._folder.cleanup()

    def __enter__(self) -> "SpreadCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, pipe: Connection, steps: int) -> float:
        if not pipe.poll(TIMEOUT_SECONDS * (1 + steps)):
            raise NodeDied("a process of the benchmark does not answer")
        seconds: float = pipe.recv()
        return seconds


def _main(stages: SpreadStages, rank: int, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    # The kernel's default lets a sleep last 50 us longer than asked for.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, stages.processes),
        rank=rank,
        world_size=stages.processes,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    node = _Node(stages, rank)
    while steps := pipe.recv():
        dist.barrier()
        began = monotonic()
        for _ in range(steps):
            node.step()
        pipe.send(monotonic() - began)


class _Node:
    def __init__(self, stages: SpreadStages, rank: int) -> None:
        self._stages = stages
        placement = stages.choosing.placement(stages.processes, stages.layers)
        self._chooser = Chooser(stages.choosing, stages.layers, placement)
        self._experts = ChosenExperts(stages.choosing, stages.layers, rank)
        self._experts.enter(placement)

    def step(self) -> None:
        """Of every micro-batch, one token of each of its sequences through all layers."""
        batches = range(self._stages.micro_batches)
        coming: list[_Exchange | None] = [None for _ in batches]
        for layer in range(self._stages.layers):
            sent = []
            for batch in batches:
                if (back := coming[batch]) is not None:
                    back.wait()
                sent.append(self._attention(layer))
            coming = [self._expert(layer, dispatch) for dispatch in sent]
        for back in coming:
            if back is not None:
                back.wait()

    def _attention(self, layer: int) -> "_Exchange":
        deadline = monotonic() + self._stages.attention
        parts = self._chooser.parts(layer, self._stages.rows)
        sleep_until(deadline)
        return _Exchange.of(parts)

    def _expert(self, layer: int, dispatch: "_Exchange") -> "_Exchange":
        """Everybody's rows for the experts here; what comes of them is on its way back."""
        dispatch.wait()
        rows, ids = dispatch.hidden, dispatch.ids
        message = Dispatch(0, 0, layer, 1, rows, ids, torch.ones(ids.shape))
        out = torch.empty_like(rows)
        self._experts.forward(layer, [message], [out])
        return dispatch.back(out)


class _Exchange:
    """Rows on their way to everybody's experts, or back."""

    def __init__(self, hidden: Tensor, ids: Tensor, splits: tuple[list[int], list[int]]) -> None:
        """hidden, ids: what is received. splits: rows for each, and of each."""
        self.hidden, self.ids = hidden, ids
        self._splits = splits
        self._works: list[Any] = []

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "_Exchange":
        """What each of the others has to know first: how many rows come."""
        own = torch.tensor([len(part.rows) for part in parts])
        counts = torch.empty_like(own)
        dist.all_to_all_single(counts, own)
        to_each, of_each = own.tolist(), counts.tolist()
        ids = torch.cat([part.local_ids for part in parts])
        received = torch.empty(sum(of_each), ids.shape[1], dtype=ids.dtype)
        exchange = cls(torch.empty(sum(of_each), HIDDEN_SIZE), received, (to_each, of_each))
        exchange._begin(received, ids, of_each, to_each)
        exchange._begin(exchange.hidden, torch.zeros(len(ids), HIDDEN_SIZE), of_each, to_each)
        return exchange

    def back(self, out: Tensor) -> "_Exchange":
        to_each, of_each = self._splits
        returned = _Exchange(torch.empty(sum(to_each), HIDDEN_SIZE), self.ids, self._splits)
        returned._begin(returned.hidden, out, to_each, of_each)
        return returned

    def wait(self) -> None:
        for work, _ in self._works:
            work.wait()

    def _begin(self, into: Tensor, out: Tensor, come: list[int], go: list[int]) -> None:
        work = dist.all_to_all_single(into, out, come, go, async_op=True)
        self._works.append((work, out))  # which has to live as long
