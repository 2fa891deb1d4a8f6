"""The weights of one layer's linear attention with a recurrent state."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import DeltaNetSpec, ModelSpec
from megainfer.models.stored import Pieces, Source, columns_of, rows_of
from megainfer.topology import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class DeltaNetSources:
    """The attention half of one layer. Heads come in order, whatever the order on disk. shard: a
    rank's part of them."""

    spec: ModelSpec
    layer: int
    shard: Shard = WHOLE

    @property
    def attention(self) -> DeltaNetSpec:
        """Of this rank."""
        return self._whole.of_rank(self.shard.ranks)

    @property
    def _whole(self) -> DeltaNetSpec:
        attention = self.spec.layers[self.layer].attention
        assert isinstance(attention, DeltaNetSpec)
        return attention

    def _own(self, weight: Pieces, *sizes: int) -> Pieces:
        """This rank's heads of a weight that has so many rows of one thing after the other."""
        if self.shard == WHOLE:
            return weight
        starts = [sum(sizes[:part]) for part in range(len(sizes))]
        parts = [(start, self.shard.of(size)) for start, size in zip(starts, sizes, strict=True)]
        return rows_of(weight, *((start + first, start + end) for start, (first, end) in parts))

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.attention_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def qkvz(self) -> Pieces:
        """Queries, keys and values of all heads, then the gates of the output."""
        net, split = self._whole, self.spec.names.delta_split
        fused = self.spec.names.delta_fused
        whole: Pieces
        if fused is None:
            whole = (self._matrix(split[0], net.channels), self._matrix(split[1], net.value_size))
        else:
            values = net.value_size // net.key_heads
            whole = self._untangled(fused[0], (net.key_dim, net.key_dim, values, values))
        return self._own(whole, net.key_size, net.key_size, net.value_size, net.value_size)

    def rates_and_decays(self) -> Pieces:
        """The rates of all value heads, then their decays."""
        heads, fused = self._whole.value_heads, self.spec.names.delta_fused
        whole: Pieces
        if fused is None:
            whole = tuple(self._matrix(name, heads) for name in self.spec.names.delta_split[2:])
        else:
            shared = heads // self._whole.key_heads
            whole = self._untangled(fused[1], (shared, shared))
        return self._own(whole, heads, heads)

    def taps(self) -> Pieces:
        """[channels, 1, taps], the newest input's last."""
        net = self._whole
        whole = (Source(self._name(self.spec.names.delta_taps), (net.channels, 1, net.taps)),)
        return self._own(whole, net.key_size, net.key_size, net.value_size)

    def time_bias(self) -> Pieces:
        return self._of_heads(self.spec.names.delta_time_bias)

    def log_decay(self) -> Pieces:
        return self._of_heads(self.spec.names.delta_log_decay)

    def head_norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.delta_norm), (self.attention.value_dim,)),)

    def out(self) -> Pieces:
        shape = (self.spec.hidden_size, self._whole.value_size)
        whole = (Source(self._name(self.spec.names.delta_out), shape),)
        return whole if self.shard == WHOLE else columns_of(whole, *self.shard.of(shape[1]))

    def all(self) -> Pieces:
        return (
            *self.norm(),
            *self.norm_bias(),
            *self.qkvz(),
            *self.rates_and_decays(),
            *self.taps(),
            *self.time_bias(),
            *self.log_decay(),
            *self.head_norm(),
            *self.out(),
        )

    def _name(self, template: str) -> str:
        return template.format(layer=self.layer)

    def _matrix(self, template: str, rows: int) -> Source:
        return Source(self._name(template), (rows, self.spec.hidden_size))

    def _of_heads(self, template: str) -> Pieces:
        heads = self._whole.value_heads
        return self._own((Source(self._name(template), (heads,)),), heads)

    def _untangled(self, template: str, sizes: tuple[int, ...]) -> Pieces:
        """Part by part the rows of all key heads, of a matrix with each key head's parts in turn.

        sizes: rows of each part of one key head.
        """
        stride, width = sum(sizes), self.spec.hidden_size
        stored = (self._whole.key_heads * stride, width)
        starts = [sum(sizes[:part]) for part in range(len(sizes))]
        return tuple(
            Source(self._name(template), (size, width), stored, rows=(first, first + size, 1))
            for start, size in zip(starts, sizes, strict=True)
            for first in range(start, stored[0], stride)
        )
