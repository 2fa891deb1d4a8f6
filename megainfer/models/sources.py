"""Which tensors on disk make up which weight, with the shapes that they must have.

Pure: no torch. Each function returns the pieces of one weight, which the loader concatenates along
the first axis; `attention_sources` and `expert_sources` list all that a role loads.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from megainfer.models.source import Pieces, Source
from megainfer.models.spec import AttentionSpec, DenseSpec, ModelSpec, MoESpec, QkNorm


@dataclass(frozen=True, slots=True)
class ModelSources:
    """The weights outside of layers."""

    spec: ModelSpec

    def embedding(self) -> Pieces:
        return (Source(self.spec.names.embedding, (self.spec.vocab_size, self.spec.hidden_size)),)

    def final_norm(self) -> Pieces:
        return (Source(self.spec.names.final_norm, (self.spec.hidden_size,)),)

    def lm_head(self) -> Pieces:
        """Empty where the embedding serves as the head."""
        if self.spec.tie_word_embeddings:
            return ()
        return (Source(self.spec.names.lm_head, (self.spec.vocab_size, self.spec.hidden_size)),)

    def all(self) -> Pieces:
        return (*self.embedding(), *self.final_norm(), *self.lm_head())


@dataclass(frozen=True, slots=True)
class AttentionSources:
    """The attention half of one layer."""

    spec: ModelSpec
    layer: int

    @property
    def attention(self) -> AttentionSpec:
        return self.spec.layers[self.layer].attention

    def _name(self, template: str) -> str:
        return template.format(layer=self.layer)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.attention_norm), (self.spec.hidden_size,)),)

    def _qkv_sizes(self) -> tuple[int, int, int]:
        return (self.attention.q_size, self.attention.kv_size, self.attention.kv_size)

    def qkv(self) -> Pieces:
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
        if self.attention.qk_norm is QkNorm.NONE:
            return ()
        by_head = self.attention.qk_norm is QkNorm.HEAD
        shape = (self.attention.head_dim if by_head else full_size,)
        return (Source(self._name(template), shape),)

    def all(self) -> Pieces:
        return (
            *self.norm(),
            *self.qkv(),
            *self.qkv_bias(),
            *self.out(),
            *self.out_bias(),
            *self.q_norm(),
            *self.k_norm(),
        )


@dataclass(frozen=True, slots=True)
class FfnSources:
    """The feed-forward half of one layer."""

    spec: ModelSpec
    layer: int

    def _name(self, template: str, expert: int = 0) -> str:
        return template.format(layer=self.layer, expert=expert)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.ffn_norm), (self.spec.hidden_size,)),)

    def _gate_up(self, templates: tuple[str, str], intermediate: int) -> Pieces:
        shape = (intermediate, self.spec.hidden_size)
        return tuple(Source(self._name(template), shape) for template in templates)

    def _down(self, template: str, intermediate: int) -> Pieces:
        return (Source(self._name(template), (self.spec.hidden_size, intermediate)),)

    def dense_gate_up(self, dense: DenseSpec) -> Pieces:
        return self._gate_up(self.spec.names.dense_gate_up, dense.intermediate)

    def dense_down(self, dense: DenseSpec) -> Pieces:
        return self._down(self.spec.names.dense_down, dense.intermediate)

    def router(self, moe: MoESpec) -> Pieces:
        shape = (moe.router.num_experts, self.spec.hidden_size)
        return (Source(self._name(self.spec.names.router), shape),)

    def shared_gate_up(self, moe: MoESpec) -> Pieces:
        if moe.shared is None:
            return ()
        return self._gate_up(self.spec.names.shared_gate_up, moe.shared.intermediate)

    def shared_down(self, moe: MoESpec) -> Pieces:
        if moe.shared is None:
            return ()
        return self._down(self.spec.names.shared_down, moe.shared.intermediate)

    def shared_gate(self, moe: MoESpec) -> Pieces:
        if moe.shared is None:
            return ()
        return (Source(self._name(self.spec.names.shared_gate), (1, self.spec.hidden_size)),)

    def expert_gate_up(self, expert: int) -> Pieces:
        shape = (self.spec.expert.intermediate, self.spec.hidden_size)
        templates = self.spec.names.expert_gate_up
        return tuple(Source(self._name(template, expert), shape) for template in templates)

    def expert_down(self, expert: int) -> Pieces:
        shape = (self.spec.hidden_size, self.spec.expert.intermediate)
        return (Source(self._name(self.spec.names.expert_down, expert), shape),)

    def attention_side(self) -> Pieces:
        """All that the attention node holds of this half."""
        ffn = self.spec.layers[self.layer].ffn
        if isinstance(ffn, DenseSpec):
            return (*self.norm(), *self.dense_gate_up(ffn), *self.dense_down(ffn))
        return (
            *self.norm(),
            *self.router(ffn),
            *self.shared_gate_up(ffn),
            *self.shared_down(ffn),
            *self.shared_gate(ffn),
        )


def attention_sources(spec: ModelSpec) -> list[Source]:
    """All that an attention node loads, each tensor once."""
    sources = [*ModelSources(spec).all()]
    for layer in range(len(spec.layers)):
        sources += AttentionSources(spec, layer).all()
        sources += FfnSources(spec, layer).attention_side()
    return sources


def attention_weight_bytes(spec: ModelSpec, dtype_bytes: int) -> int:
    """Bytes of all that an attention node loads: everything but the routed experts."""
    return sum(prod(source.shape) for source in attention_sources(spec)) * dtype_bytes


def expert_sources(spec: ModelSpec, experts: Iterable[int]) -> list[Source]:
    """All that an expert node with these global expert ids loads."""
    ids, sources = tuple(experts), list[Source]()
    for layer in spec.moe_layers:
        ffn = FfnSources(spec, layer)
        for expert in ids:
            sources += [*ffn.expert_gate_up(expert), *ffn.expert_down(expert)]
    return sources
