"""Finding tokens with Triton kernels."""

from collections.abc import Sequence

from torch import Tensor

from megainfer.compute.edits import RowEdits
from megainfer.compute.gpu.kernels.sampling.best import best
from megainfer.compute.gpu.kernels.sampling.drawing import draw
from megainfer.compute.gpu.kernels.sampling.edits import edit
from megainfer.compute.gpu.kernels.sampling.logprobs import scores
from megainfer.compute.tokens import DrawWish, Scores
from megainfer.device import Device


class GpuTokens:
    """`tokens.TokenKernels` in a few launches for all rows; a row's result doesn't depend on the
    others, bit for bit."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See `tokens.TokenKernels.best`."""
        return best(self._device, logits)

    def draw(self, logits: Tensor, wishes: Sequence[DrawWish]) -> Tensor:
        """See `tokens.TokenKernels.draw`; what is drawn is always a token."""
        return draw(self._device, logits, wishes)

    def edit(self, logits: Tensor, edits: Sequence[RowEdits]) -> None:
        """See `tokens.TokenKernels.edit`."""
        edit(self._device, logits, edits)

    def scores(
        self, logits: Tensor, tokens: Tensor, rows: Sequence[int], wanted: Sequence[int]
    ) -> Scores:
        """See `tokens.TokenKernels.scores`; of tokens that tie the first are among the best."""
        return scores(self._device, logits, tokens, rows, wanted)
