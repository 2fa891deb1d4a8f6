"""The weights of one layer's feed-forward half."""

from dataclasses import dataclass

from megainfer.models.source import Pieces, Source
from megainfer.models.sources.norm import norm_bias
from megainfer.models.spec import DenseSpec, ModelSpec, MoESpec, SharedExpertSpec


@dataclass(frozen=True, slots=True)
class FfnSources:
    """The feed-forward half of one layer."""

    spec: ModelSpec
    layer: int

    def _name(self, template: str, expert: int = 0) -> str:
        return template.format(layer=self.layer, expert=expert)

    def norm(self) -> Pieces:
        return (Source(self._name(self.spec.names.ffn_norm), (self.spec.hidden_size,)),)

    def norm_bias(self) -> Pieces:
        return norm_bias(self.norm(), self.spec.norm)

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
            return (
                *self.norm(),
                *self.norm_bias(),
                *self.dense_gate_up(ffn),
                *self.dense_down(ffn),
            )
        return (
            *self.norm(),
            *self.norm_bias(),
            *self.router(ffn),
            *self._shared(ffn.shared),
        )
