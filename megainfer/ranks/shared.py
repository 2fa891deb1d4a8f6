"""Memory that the ranks of a node share, as tensors. Who only makes it needs no torch."""

from dataclasses import dataclass
from math import prod
from mmap import mmap
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Layout(Protocol):
    @property
    def ranks(self) -> int: ...

    @property
    def total_bytes(self) -> int: ...


AnyLayout = TypeVar("AnyLayout", bound=Layout)


@dataclass(frozen=True, slots=True)
class Shared(Generic[AnyLayout]):
    """Anonymous memory for a layout, made before ranks are forked."""

    layout: AnyLayout
    memory: mmap

    @classmethod
    def create(cls, layout: AnyLayout) -> "Shared[AnyLayout]":
        return cls(layout, mmap(-1, layout.total_bytes))

    def tensor(self, offset: int, shape: tuple[int, ...], dtype: "torch.dtype") -> "Tensor":
        """What is there, as all see it."""
        import torch

        flat = torch.frombuffer(self.memory, dtype=dtype, count=prod(shape), offset=offset)
        return flat.view(shape)

    def close(self) -> None:
        """In a process that has no tensors in it."""
        self.memory.close()
