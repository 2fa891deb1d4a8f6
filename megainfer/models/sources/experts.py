"""The weights of one routed expert, or a rank's part of them."""

from dataclasses import dataclass

from megainfer.models.names import ExpertStorage
from megainfer.models.spec import ModelSpec
from megainfer.models.stored import Pieces, Source, columns_of, rows_of
from megainfer.topology import WHOLE, Shard

Rows = tuple[int, int, int]


def bias_name(weight: str) -> str:
    """Of the bias that belongs to this weight."""
    stem = weight.removesuffix(".weight")
    return f"{weight}_bias" if stem == weight else f"{stem}.bias"


@dataclass(frozen=True, slots=True)
class ExpertSources:
    """One expert, alone in its tensors or a part of those of all. shard: whose part of its F
    channels, of which sums over all ranks are whole."""

    spec: ModelSpec
    layer: int
    expert: int
    shard: Shard = WHOLE

    def gate_up(self) -> Pieces:
        """[2F, D], gate first."""
        return self._own_channels(self._gate_up())

    def _gate_up(self) -> Pieces:
        """Of all ranks."""
        names = self.spec.names
        whole = (self._gate_up_channels, self.spec.hidden_size)
        turned = names.experts.transposed
        return tuple(
            self._part(template, whole, rows, turned)
            for template in names.expert_gate_up
            for rows in self._gate_up_rows
        )

    def gate_up_bias(self) -> Pieces:
        """[2F]; empty where experts have none."""
        if not self.spec.expert.bias:
            return ()
        whole = tuple(
            self._part(bias_name(template), (self._gate_up_channels,), rows)
            for template in self.spec.names.expert_gate_up
            for rows in self._gate_up_rows
        )
        return self._own_channels(whole)

    def down(self) -> Pieces:
        """[D, F]."""
        layout = self.spec.names.experts
        turned = layout.transposed or layout.storage is ExpertStorage.FLAT
        shape = (self.spec.hidden_size, self.spec.expert.intermediate)
        whole = (self._part(self.spec.names.expert_down, shape, None, turned),)
        return whole if self.shard == WHOLE else columns_of(whole, *self._own)

    def down_bias(self) -> Pieces:
        """[D]; empty where experts have none, and on all ranks but the first, since it is added
        once."""
        if not (self.spec.expert.bias and self.shard.leads):
            return ()
        return (self._part(bias_name(self.spec.names.expert_down), (self.spec.hidden_size,)),)

    def all(self) -> Pieces:
        return (*self.gate_up(), *self.gate_up_bias(), *self.down(), *self.down_bias())

    @property
    def _own(self) -> tuple[int, int]:
        return self.shard.of(self.spec.expert.intermediate)

    def _own_channels(self, gate_up: Pieces) -> Pieces:
        """Of gate's channels, then of up's."""
        if self.shard == WHOLE:
            return gate_up
        (first, end), up = self._own, self.spec.expert.intermediate
        return rows_of(gate_up, (first, end), (up + first, up + end))

    @property
    def _gate_up_channels(self) -> int:
        """Of one tensor: those of gate and up, or of one of them."""
        return 2 * self.spec.expert.intermediate // len(self.spec.names.expert_gate_up)

    @property
    def _gate_up_rows(self) -> tuple[Rows | None, ...]:
        """Which rows of a tensor are wanted, one after the other."""
        if not self.spec.names.experts.interleaved:
            return (None,)
        channels = self._gate_up_channels
        return ((0, channels, 2), (1, channels, 2))

    def _part(
        self, template: str, whole: tuple[int, ...], rows: Rows | None = None, turned: bool = False
    ) -> Source:
        """Some rows of this expert's share, `whole` as it is computed with, of a tensor."""
        name = template.format(layer=self.layer, expert=self.expert)
        shape = (len(range(*rows)) if rows else whole[0], *whole[1:])
        first, *others = whole[::-1] if turned else whole
        experts, storage = self.spec.num_experts, self.spec.names.experts.storage
        if storage is ExpertStorage.SEPARATE:
            return Source(name, shape, (first, *others), None, turned, rows)
        if storage is ExpertStorage.STACKED:
            return Source(name, shape, (experts, first, *others), self.expert, turned, rows)
        flat = (experts * first, *others)
        return Source(name, shape, flat, self.expert, turned, rows, entries=experts)
