"""What an expert node asks of one layer's experts, whichever implementation computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megainfer.device import Recordings
from megainfer.models.spec import SILU, ActivationSpec

Biases = tuple[Tensor, Tensor]
"""Of one expert: gate's and up's [2F], gate first, and down's [D]."""


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """E gated experts, D -> F -> D; each row chooses K.

    bias, weight_on_input: see `ExpertSpec`.
    """

    experts: int
    hidden: int
    intermediate: int
    top_k: int
    activation: ActivationSpec = SILU
    bias: bool = False
    weight_on_input: bool = False


class LayerExperts(Protocol):
    """The routed experts of one layer that live on a node, by local id: the number of a slot, which
    is empty until something is put there."""

    def prepare(self, gate_up: Tensor, down: Tensor, biases: Biases | None = None) -> object:
        """One expert's weights as they are computed with, still in no slot: float32 [2F, D], gate
        first, and [D, F]. What comes of it is for `put`, of any layer that was made with this one.

        biases: float32, of experts whose shape has them. Any thread may call it, whatever others
        do.
        """

    def put(self, local_id: int, prepared: object) -> None:
        """The slot, which is empty, holds this from the next `forward` on; no weight is copied."""

    def take(self, local_id: int) -> object:
        """Empty a slot; what it held may be put into another one."""

    def forget(self, prepared: object) -> None:
        """It will be put nowhere; its memory is free for what is prepared next."""

    @property
    def form(self) -> str:
        """How an expert of this shape lies in `copied`; the same where the bytes mean the same."""

    @property
    def copied_bytes(self) -> int:
        """Of one expert."""

    def copied(self, local_id: int) -> Tensor:
        """What a slot holds, as bytes: uint8 [copied_bytes] of the host's memory. Any thread may
        call it while nobody puts or takes anything."""

    def adopt(self, copied: Tensor) -> object:
        """As `prepare`, of what `copied` gave elsewhere, in the same form."""

    def forward(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None] | None = None,
    ) -> Tensor:
        """Compute several messages at once; how many choices each expert got, int64 [E], which is
        valid until the next call.

        A message: hidden [R, D]; local_ids int32 [R, K], anything but an expert's id being a
        choice that is not here; weights float32 [R, K]; out [R, D] in hidden's dtype, overwritten
        with the rows' outputs, weighted and summed over this node's experts. Its count: int32 [1]
        on the device, how many of the rows count, as in `m2n.mailbox.Dispatch`; those behind them
        choose nothing, whatever they hold. None, of one or of all: all rows count, as on the host
        they do.
        """


def bytes_of(parts: Sequence[Tensor]) -> Tensor:
    """Contiguous tensors as bytes of the host's memory, one after the other."""
    return torch.cat([part.reshape(-1).view(torch.uint8).cpu() for part in parts])


def fill_with(parts: Sequence[Tensor], copied: Tensor) -> None:
    """These get what `bytes_of` such tensors gave."""
    sizes = [part.nbytes for part in parts]
    for part, own in zip(parts, copied.split_with_sizes(sizes), strict=True):
        part.reshape(-1).view(torch.uint8).copy_(own)


class FixedBatch(Protocol):
    """Messages of at most `rows` rows together, where what a device has recorded finds them: which
    memory they lie in is written down at a place that stays."""

    @property
    def rows(self) -> int: ...

    def take(
        self,
        hidden: Sequence[Tensor],
        local_ids: Sequence[Tensor],
        weights: Sequence[Tensor],
        outs: Sequence[Tensor],
        counts: Sequence[Tensor | None],
    ) -> None:
        """From here on it is these messages, as for `LayerExperts.forward`, also in what the
        current stream is given; there are no more of them than it was made for."""

    def record(
        self,
        recordings: Recordings,
        layer: LayerExperts,
        count: Callable[[Tensor], object],
    ) -> Callable[[], None]:
        """`LayerExperts.forward` of whatever messages this is when what is returned is called;
        layer: of the backend that made this one. count: is given the choices of each expert, int64
        [E], within what is recorded. What the layer's slots hold may change."""
