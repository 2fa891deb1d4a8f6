"""The weights of one layer's linear attention with a recurrent state."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import DeltaNetSpec, ModelSpec
from megainfer.models.stored import Pieces, Source


@dataclass(frozen=True, slots=True)
class DeltaNetSources:
    """The attention half of one layer. Heads come in order, whatever the order on disk."""

    spec: ModelSpec
    layer: int

    @property
    def attention(self) -> DeltaNetSpec:
        attention = self.spec.layers[self.layer].attention
        assert isinstance(attention, DeltaNetSpec)
        return attention

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.attention_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def qkvz(self) -> Pieces:
        """Queries, keys and values of all heads, then the gates of the output."""
        net, split = self.attention, self.spec.names.delta_split
        fused = self.spec.names.delta_fused
        if fused is None:
            return (self._matrix(split[0], net.channels), self._matrix(split[1], net.value_size))
        values = net.value_size // net.key_heads
        return self._untangled(fused[0], (net.key_dim, net.key_dim, values, values))

    def rates_and_decays(self) -> Pieces:
        """The rates of all value heads, then their decays."""
        heads, fused = self.attention.value_heads, self.spec.names.delta_fused
        if fused is None:
            return tuple(self._matrix(name, heads) for name in self.spec.names.delta_split[2:])
        shared = heads // self.attention.key_heads
        return self._untangled(fused[1], (shared, shared))

    def taps(self) -> Pieces:
        """[channels, 1, taps], the newest input's last."""
        shape = (self.attention.channels, 1, self.attention.taps)
        return (Source(self._name(self.spec.names.delta_taps), shape),)

    def time_bias(self) -> Pieces:
        return (self._of_heads(self.spec.names.delta_time_bias),)

    def log_decay(self) -> Pieces:
        return (self._of_heads(self.spec.names.delta_log_decay),)

    def head_norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.delta_norm), (self.attention.value_dim,)),)

    def out(self) -> Pieces:
        shape = (self.spec.hidden_size, self.attention.value_size)
        return (Source(self._name(self.spec.names.delta_out), shape),)

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

    def _of_heads(self, template: str) -> Source:
        return Source(self._name(template), (self.attention.value_heads,))

    def _untangled(self, template: str, sizes: tuple[int, ...]) -> Pieces:
        """Part by part the rows of all key heads, of a matrix with each key head's parts in turn.

        sizes: rows of each part of one key head.
        """
        stride, width = sum(sizes), self.spec.hidden_size
        stored = (self.attention.key_heads * stride, width)
        starts = [sum(sizes[:part]) for part in range(len(sizes))]
        return tuple(
            Source(self._name(template), (size, width), stored, rows=(first, first + size, 1))
            for start, size in zip(starts, sizes, strict=True)
            for first in range(start, stored[0], stride)
        )
