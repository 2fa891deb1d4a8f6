"""What a receiver of broadcast weights is asked, as JSON, and what it says."""

import re
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from megainfer.errors import ConfigError

ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
"""Of the store: part of a URL, of which it is nothing else."""
BACKENDS = ("gloo", "nccl")
NAME = "weight_update_group"
"""As SGLang calls the group where nobody says otherwise."""
OPERATION_SECONDS = 60.0
"""How long joining, or one tensor, may take: whoever sends has died, or has forgotten it."""
MAX_SECONDS = 600.0
MAX_TENSORS = 2**20
MAX_ENTRIES = 2**48


class Group(msgspec.Struct, frozen=True):
    """address, port: of the store that rank 0, who sends, has opened. rank: ours. name: the same
    for all, so that one store serves several groups. Raises ConfigError."""

    address: str
    port: int
    rank: int = 1
    world_size: int = 2
    backend: str = "gloo"
    name: str = NAME
    seconds: float = OPERATION_SECONDS

    def __post_init__(self) -> None:
        if not ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"the group's address must be a host's name or number, not {self.address!r:.80}"
            )
        if self.backend not in BACKENDS:
            raise ConfigError(f"backend must be {' or '.join(BACKENDS)}, not {self.backend!r:.40}")
        if not 0 < self.port < 2**16:
            raise ConfigError(f"the group's port must be from 1 to 65535, not {self.port}")
        if not 1 <= self.rank < self.world_size <= 2**16:
            raise ConfigError(
                f"rank must be from 1, as 0 sends, and below the group's size; they are "
                f"{self.rank} and {self.world_size}"
            )
        if not 0 < self.seconds <= MAX_SECONDS:
            raise ConfigError(
                f"seconds must be above 0 and at most {MAX_SECONDS:g}, not {self.seconds}"
            )


class Announced(msgspec.Struct, frozen=True):
    """A tensor that rank 0 is going to broadcast. dtype: torch's name of it."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class BroadcastWeights(msgspec.Struct, frozen=True):
    """All of them, in the order in which they are broadcast."""

    tensors: tuple[Announced, ...]

    @classmethod
    def of(
        cls, names: Sequence[str], dtypes: Sequence[str], shapes: Iterable[Sequence[int]]
    ) -> Self:
        """As trainers say it: three lists. Raises ConfigError."""
        own = [tuple(shape) for shape in shapes]
        if not len(names) == len(dtypes) == len(own):
            raise ConfigError(
                f"each tensor has a name, a dtype and a shape, but there are {len(names)}, "
                f"{len(dtypes)} and {len(own)}"
            )
        if not 0 < len(names) <= MAX_TENSORS:
            raise ConfigError(f"1 to {MAX_TENSORS} tensors can be broadcast, not {len(names)}")
        if len(set(names)) < len(names):
            raise ConfigError("two tensors have the same name")
        for name, shape in zip(names, own, strict=True):
            if not all(0 <= size <= MAX_ENTRIES for size in shape):
                raise ConfigError(f"tensor {name:.200} can't have shape {list(shape)}")
        return cls(tuple(map(Announced, names, dtypes, own)))


class Join(msgspec.Struct, frozen=True):
    """The first frame. parent: id of the process that asks, with which the receiver ends."""

    parent: int
    group: Group


class Said(msgspec.Struct, frozen=True):
    """After joining, and to each BroadcastWeights. path: of what came, until the next question.
    error: why there is nothing; the group is of no use any more then."""

    path: str | None = None
    error: str | None = None
