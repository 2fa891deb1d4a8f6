"""The weights of one layer's feed-forward half."""

from dataclasses import dataclass

from megainfer.models.sources.experts import ExpertSources, bias_name
from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec, RouterScore, SharedExpertSpec
from megainfer.models.stored import Pieces, Source, columns_of, rows_of
from megainfer.topology import WHOLE, Shard


@dataclass(frozen=True, slots=True)
class FfnSources:
    """The feed-forward half of one layer. shard: a rank's part of the channels of dense networks
    and shared experts; what decides is the first rank's alone."""

    spec: ModelSpec
    layer: int
    shard: Shard = WHOLE

    def _name(self, template: str) -> str:
        return template.format(layer=self.layer)

    def expert(self, expert: int, shard: Shard = WHOLE) -> ExpertSources:
        """One routed expert's, by its global id; shard: a rank's part of it."""
        return ExpertSources(self.spec, self.layer, expert, shard)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.ffn_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

    def _gate_up(self, templates: tuple[str, ...], intermediate: int) -> Pieces:
        """intermediate: of all ranks."""
        shape = (2 * intermediate // len(templates), self.spec.hidden_size)
        whole = tuple(Source(self._name(template), shape) for template in templates)
        if self.shard == WHOLE:
            return whole
        first, end = self.shard.of(intermediate)
        return rows_of(whole, (first, end), (intermediate + first, intermediate + end))

    def _down(self, template: str, intermediate: int) -> Pieces:
        whole = (Source(self._name(template), (self.spec.hidden_size, intermediate)),)
        return whole if self.shard == WHOLE else columns_of(whole, *self.shard.of(intermediate))

    def dense_gate_up(self, dense: DenseSpec) -> Pieces:
        return self._gate_up(self.spec.names.dense_gate_up, dense.intermediate)

    def dense_down(self, dense: DenseSpec) -> Pieces:
        return self._down(self.spec.names.dense_down, dense.intermediate)

    def router(self, moe: MoESpec) -> Pieces:
        """Empty where its score is constant."""
        if moe.router.score is RouterScore.CONSTANT:
            return ()
        shape = (moe.router.num_experts, self.spec.hidden_size)
        return (Source(self._name(self.spec.names.router), shape),)

    def router_bias(self, moe: MoESpec) -> Pieces:
        if not moe.router.bias:
            return ()
        name = bias_name(self._name(self.spec.names.router))
        return (Source(name, (moe.router.num_experts,)),)

    def selection_bias(self, moe: MoESpec) -> Pieces:
        if not moe.router.selection_bias:
            return ()
        name, experts = self._name(self.spec.names.selection_bias), moe.router.num_experts
        if self.spec.names.nested_selection_bias:
            return (Source(name, (experts,), stored=(1, experts), index=0),)
        return (Source(name, (experts,)),)

    def hash_table(self, moe: MoESpec) -> Pieces:
        """Of a router that is `hashed`."""
        if not moe.router.hashed:
            return ()
        shape = (self.spec.vocab_size, moe.router.top_k)
        return (Source(self._name(self.spec.names.hash_table), shape, integer=True),)

    def _router(self, moe: MoESpec) -> Pieces:
        """All that decides."""
        if not self.shard.leads:
            return ()
        return (
            *self.router(moe),
            *self.router_bias(moe),
            *self.selection_bias(moe),
            *self.hash_table(moe),
        )

    def shared_gate_up(self, shared: SharedExpertSpec) -> Pieces:
        return self._gate_up(self.spec.names.shared_gate_up, shared.intermediate)

    def shared_down(self, shared: SharedExpertSpec) -> Pieces:
        return self._down(self.spec.names.shared_down, shared.intermediate)

    def shared_gate(self) -> Pieces:
        """Of a shared expert that is `gated`."""
        return (Source(self._name(self.spec.names.shared_gate), (1, self.spec.hidden_size)),)

    def _shared(self, shared: SharedExpertSpec | None) -> Pieces:
        if shared is None:
            return ()
        gate = self.shared_gate() if shared.gated else ()
        return (*self.shared_gate_up(shared), *self.shared_down(shared), *gate)

    def attention_side(self) -> Pieces:
        """All that the attention node holds of this half."""
        ffn = self.spec.layers[self.layer].ffn
        if isinstance(ffn, DenseSpec):
            return (
                *self.norm(),
                *self.norm_bias(),
                *self.dense_gate_up(ffn),
                *self.dense_down(ffn),
            )
        return (
            *self.norm(),
            *self.norm_bias(),
            *self._router(ffn),
            *self._shared(ffn.shared),
        )
