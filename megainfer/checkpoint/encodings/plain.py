"""A tensor that is the weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megainfer.checkpoint.headers import StoredTensor
from megainfer.models.stored import Source

if TYPE_CHECKING:
    from torch import Tensor

FLOATS = ("F64", "F32", "BF16", "F16")
INTEGERS = ("I64", "I32")


@dataclass(frozen=True, slots=True)
class Plain:
    """`Encoding` of a tensor of floating point."""

    codes: StoredTensor

    @property
    def packed(self) -> int:
        return 1

    @property
    def flipped(self) -> bool:
        return False

    @property
    def sides(self) -> tuple[StoredTensor, ...]:
        return ()

    def decode(self, codes: "Tensor", lines: range, sides: "Sequence[Tensor]") -> "Tensor":
        """See `Encoding.decode`."""
        return codes


def plain(stored: StoredTensor, source: Source) -> Plain:
    """Raises CheckpointError where the tensor is misshapen or not of floating point (of whole
    numbers where the source asks for them)."""
    kinds = INTEGERS if source.integer else FLOATS
    if stored.kind not in kinds:
        raise stored.fail(
            f"is stored as {stored.kind}, but nothing says what it means: no quantization_config "
            f"in config.json, or no scales beside it; supported by itself: {', '.join(kinds)}"
        )
    whole = stored.shaped(source.stored_shape)
    return Plain(whole.split(source.entries).entry(source.index))
