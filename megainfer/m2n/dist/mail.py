"""Messages of this road: `packed_mail`'s."""

from torch import Tensor

from megainfer.m2n.slotted.packed_mail import PackedAttentionMail, PackedExpertMail


class DistAttentionMail(PackedAttentionMail):
    """`mail.AttentionMail`."""

    rings = True  # a message is its own bell


class DistExpertMail(PackedExpertMail):
    """`mail.ExpertMail`."""

    rings = True

    def payload(self, slot: int, rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """See `mail.ExpertMail.payload`; on the host all rows count."""
        hidden, local_ids, weights, count = super().payload(slot, rows)
        return hidden, local_ids, weights, None if self.device.is_host else count
