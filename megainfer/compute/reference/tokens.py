"""Finding tokens in torch."""

from collections.abc import Sequence

from torch import Tensor

from megainfer.compute.edits import RowEdits
from megainfer.compute.reference import kernels as kernels
from megainfer.compute.tokens import DrawWish, Scores
from megainfer.device import Device


class ReferenceTokens:
    """`tokens.TokenKernels` on a device."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `tokens.TokenKernels.best`."""
        return kernels.best(logits)

    def draw(self, logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
        """See `tokens.TokenKernels.draw`."""
        return kernels.draw(logits, wishes, self._device)

    def edit(self, logits: Tensor, edits: Sequence[RowEdits]) -> None:
        """See `tokens.TokenKernels.edit`."""
        kernels.edit(logits, edits, self._device)

    def scores(
        self, logits: Tensor, tokens: Tensor, rows: Sequence[int], wanted: Sequence[int]
    ) -> Scores:
        """See `tokens.TokenKernels.scores`."""
        return kernels.scores(logits, tokens, rows, wanted)
