"""Messages of this road: `packed_mail`'s, checked where the host can look at rows."""

from collections.abc import Sequence

from torch import Tensor

from megainfer.m2n.mailbox import Part
from megainfer.m2n.slotted.packed_mail import PackedAttentionMail, PackedExpertMail
from megainfer.m2n.slotted.plain_mail import check_rows


class DistAttentionMail(PackedAttentionMail):
    """`mail.AttentionMail`."""

    rings = True  # a message is its own bell

    def dispatch(
        self, micro_batch: int, layer: int, sequence: int, hidden: Tensor, parts: Sequence[Part]
    ) -> None:
        """See `mail.AttentionMail.dispatch`."""
        self._check(parts, len(hidden))
        super().dispatch(micro_batch, layer, sequence, hidden, parts)

    def combine(self, micro_batch: int, parts: Sequence[Part], out: Tensor) -> None:
        """See `mail.AttentionMail.combine`."""
        self._check(parts, len(out))
        super().combine(micro_batch, parts, out)

    def _check(self, parts: Sequence[Part], tokens: int) -> None:
        if self.device.is_host:
            for part in parts:
                check_rows(part.rows, tokens)


class DistExpertMail(PackedExpertMail):
    """`mail.ExpertMail`."""

    rings = True

    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `mail.ExpertMail.payload`; on the host all rows count."""
        hidden, local_ids, weights, count = super().payload(slot, rows)
        return hidden, local_ids, weights, None if self.device.is_host else count
