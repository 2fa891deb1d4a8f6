"""The weights of one layer's attention."""

from dataclasses import dataclass

from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import AttentionSpec, ModelSpec, QkNorm
from megainfer.models.stored import Pieces, Source


@dataclass(frozen=True, slots=True)
class AttentionSources:
    """The attention half of one layer."""

    spec: ModelSpec
    layer: int

    @property
    def attention(self) -> AttentionSpec:
        attention = self.spec.layers[self.layer].attention
        assert isinstance(attention, AttentionSpec)
        return attention

    def _name(self, template: str) -> str:
        return template.format(layer=self.layer)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.attention_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def _qkv_sizes(self) -> tuple[int, ...]:
        """Of the projections on disk."""
        sizes = self.attention.qkv_sizes
        return sizes if len(self.spec.names.qkv) > 1 else (sum(sizes),)

    def qkv(self) -> Pieces:
        """Queries, where they are gated each head's before its gate's, then keys, then values."""
        return tuple(
            Source(self._name(template) + ".weight", (size, self.spec.hidden_size))
            for template, size in zip(self.spec.names.qkv, self._qkv_sizes(), strict=True)
        )

    def qkv_bias(self) -> Pieces:
        if not self.attention.qkv_bias:
            return ()
        return tuple(
            Source(self._name(template) + ".bias", (size,))
            for template, size in zip(self.spec.names.qkv, self._qkv_sizes(), strict=True)
        )

    def out(self) -> Pieces:
        shape = (self.spec.hidden_size, self.attention.q_size)
        return (Source(self._name(self.spec.names.out) + ".weight", shape),)

    def out_bias(self) -> Pieces:
        if not self.attention.out_bias:
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
        return (Source(self._name(self.spec.names.sinks), (self.attention.num_heads,)),)

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
