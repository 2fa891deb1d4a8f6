"""The weights of one layer's attention."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import AttentionSpec, ModelSpec, QkNorm
from megainfer.models.stored import Pieces, Source, columns_of, rows_of
from megainfer.topology import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class AttentionSources:
    """The attention half of one layer; shard: a rank's part of its heads. What the output's bias
    adds, the first rank does."""

    spec: ModelSpec
    layer: int
    shard: Shard = WHOLE

    @property
    def attention(self) -> AttentionSpec:
        """Of this rank."""
        return self._whole.of_rank(self.shard.ranks)

    @property
    def _whole(self) -> AttentionSpec:
        attention = self.spec.layers[self.layer].attention
        assert isinstance(attention, AttentionSpec)
        return attention

    def _own(self, qkv: Pieces) -> Pieces:
        """Of queries, keys and values those of this rank's heads."""
        if self.shard == WHOLE:
            return qkv
        whole, own = self._whole, self.attention
        queries, keys, _ = whole.qkv_sizes
        kv_head = self.shard.rank * whole.num_kv_heads // self.shard.ranks
        first, width = kv_head * own.head_dim, own.kv_size
        parts = ((start + first, start + first + width) for start in (queries, queries + keys))
        return rows_of(qkv, self.shard.of(queries), *parts)

    def _name(self, template: str) -> str:
        return template.format(layer=self.layer)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.attention_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def _qkv_sizes(self) -> tuple[int, ...]:
        """Of the projections on disk."""
        sizes = self._whole.qkv_sizes
        return sizes if len(self.spec.names.qkv) > 1 else (sum(sizes),)

    def qkv(self) -> Pieces:
        """Queries, where they are gated each head's before its gate's, then keys, then values."""
        whole = tuple(
            Source(self._name(template) + ".weight", (size, self.spec.hidden_size))
            for template, size in zip(self.spec.names.qkv, self._qkv_sizes(), strict=True)
        )
        return self._own(whole)

    def qkv_bias(self) -> Pieces:
        if not self.attention.qkv_bias:
            return ()
        whole = tuple(
            Source(self._name(template) + ".bias", (size,))
            for template, size in zip(self.spec.names.qkv, self._qkv_sizes(), strict=True)
        )
        return self._own(whole)

    def out(self) -> Pieces:
        shape = (self.spec.hidden_size, self._whole.q_size)
        whole = (Source(self._name(self.spec.names.out) + ".weight", shape),)
        return whole if self.shard == WHOLE else columns_of(whole, *self.shard.of(shape[1]))

    def out_bias(self) -> Pieces:
        if not (self.attention.out_bias and self.shard.leads):
            return ()
        return (Source(self._name(self.spec.names.out) + ".bias", (self.spec.hidden_size,)),)

    def q_norm(self) -> Pieces:
        return self._qk_norm(self.spec.names.q_norm, self.attention.q_size)

    def k_norm(self) -> Pieces:
        return self._qk_norm(self.spec.names.k_norm, self.attention.kv_size)

    def _qk_norm(self, template: str, full_size: int) -> Pieces:
        if self.attention.qk_norm in (QkNorm.NONE, QkNorm.UNIT):
            return ()
        by_head = self.attention.qk_norm is QkNorm.HEAD
        shape = (self.attention.head_dim if by_head else full_size,)
        return (Source(self._name(template), shape),)

    def sinks(self) -> Pieces:
        if not self.attention.sinks:
            return ()
        heads = self._whole.num_heads
        return rows_of((Source(self._name(self.spec.names.sinks), (heads,)),), self.shard.of(heads))

    def all(self) -> Pieces:
        return (
            *self.norm(),
            *self.norm_bias(),
            *self.qkv(),
            *self.qkv_bias(),
            *self.out(),
            *self.out_bias(),
            *self.q_norm(),
            *self.k_norm(),
            *self.sinks(),
        )
