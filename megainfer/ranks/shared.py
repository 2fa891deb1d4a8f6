"""Memory that the ranks of a node share, as tensors. Who only makes it needs no torch."""

from dataclasses import dataclass
from math import prod
from mmap import mmap
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from megainfer.ranks.layout import MEETING_BYTES, Field

if TYPE_CHECKING:
    from torch import Tensor


class Layout(Protocol):
    """See `layout`. given: what goes with orders, by numbers of fields."""

    @property
    def ranks(self) -> int: ...

    @property
    def given(self) -> tuple[Field, ...]: ...

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
        return cls(layout, mmap(-1, layout.total_bytes + layout.ranks * MEETING_BYTES))

    def field(self, field: Field) -> "Tensor":
        """All of its rows, as all see them."""
        import torch

        shape, dtype = (field.rows, *field.shape), getattr(torch, field.dtype)
        with torch.inference_mode(False):  # it is written in any mode
            flat = torch.frombuffer(
                self.memory, dtype=dtype, count=prod(shape), offset=field.offset
            )
            return flat.view(shape)

    def close(self) -> None:
        """In a process that has no tensors in it."""
        self.memory.close()
