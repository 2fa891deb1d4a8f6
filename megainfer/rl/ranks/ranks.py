"""One of several processes that train together, as `torchrun` starts them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from megainfer.errors import ConfigError

T = TypeVar("T")
PATIENCE = timedelta(days=1)
"""For the first rank, which draws whole rollouts between two words. One that dies is missed at
once: its connections close."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """rank: of this process, from 0, of `world`. local: its place among those of its host."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """It draws, scores and writes; the others compute with it."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Of this rank, where a run's is `name`. Raises ConfigError for one that can't be used."""
        try:
            device = torch.device(name)
            if self.world > 1 and device.type != "cpu":
                if device.index is not None:
                    raise ConfigError(
                        f"compute.device {name!r} is one device for {self.world} ranks: leave out "
                        "its number, so that each takes its own"
                    )
                device = torch.device(device.type, self.local)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"compute.device {name!r} can't be used: {error}") from error
        return device

    def deal(self, parts: Sequence[T]) -> list[tuple[T, int]]:
        """This rank's of these, each with weight 1. All get as many, as they compute in step: who
        has one too few takes the first again, with weight 0.

        >>> Ranks(0, 2).deal("abc"), Ranks(1, 2).deal("abc")
        ([('a', 1), ('c', 1)], [('b', 1), ('a', 0)])
        """
        count = -(-len(parts) // self.world)
        own: list[tuple[T, int]] = [(part, 1) for part in parts[self.rank :: self.world]]
        return own + [(part, 0) for part in parts[:1]] * (count - len(own))

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Of each the sum over ranks."""
        if self.world == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(tensor)
        found: list[float] = tensor.tolist()
        return found

    def tell(self, message: bytes) -> None:
        """From the first rank to all others, which `hear` it."""
        distributed.broadcast(torch.tensor([len(message)]), 0)
        distributed.broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8), 0)

    def hear(self) -> bytes:
        """What the first rank tells next. Raises RuntimeError where it has ended."""
        size = torch.empty(1, dtype=torch.int64)
        distributed.broadcast(size, 0)
        message = torch.empty(int(size), dtype=torch.uint8)
        distributed.broadcast(message, 0)
        return message.numpy().tobytes()


ALONE = Ranks()


@contextmanager
def joined(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[Ranks]:
    """All ranks that `torchrun` started, for as long as this lasts; ALONE where it started none.

    device: of the run, which decides how gradients travel. Raises ConfigError.
    """
    world = environment.get("WORLD_SIZE", "1")
    if world == "1":
        yield ALONE
        return
    try:
        own = Ranks(int(environment["RANK"]), int(world), int(environment["LOCAL_RANK"]))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is {world!r}, but RANK and LOCAL_RANK aren't as torchrun sets them: "
            f"{error}; start with torchrun, or unset WORLD_SIZE"
        ) from error
    used = own.device(device)
    if used.type == "cuda":
        torch.accelerator.set_device_index(used)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if used.type == "cuda" else "gloo", timeout=PATIENCE
    )
    try:
        yield own
    finally:
        distributed.destroy_process_group()
