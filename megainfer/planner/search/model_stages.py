"""A model's stages by device, as the search asks for them."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from megainfer.planner.costs import AttentionStage, ColocatedStage, ExpertStage, ModelCosts, Road
from megainfer.planner.hardware import Device
from megainfer.planner.search.deployment import Nodes


@dataclass(frozen=True, slots=True)
class ModelStages:
    """`search.costs.Costs` of one model. A stage is made once: a search asks for it very often."""

    model: ModelCosts
    _made: dict[Hashable, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def moe_layers(self) -> int:
        """L: where the halves take turns."""
        return self.model.moe_layers

    @property
    def num_experts(self) -> int:
        """E of one layer."""
        return self.model.num_experts

    def attention(self, device: Device, tp: int) -> AttentionStage:
        """One attention node. Raises ConfigError for a tp that its heads can't be shared by."""
        key = ("attention", device.name, tp)
        if key not in self._made:
            self._made[key] = AttentionStage(self.model, device, tp)
        made: AttentionStage = self._made[key]
        return made

    @property
    def experts_alike(self) -> bool:
        """Whether tokens choose all experts as often."""
        return self.model.popularity.is_uniform

    def experts(self, device: Device, tp: int, nodes: int, spares: int = 0) -> ExpertStage:
        """The expert nodes of an instance, each with `spares` experts beyond its share."""
        key = ("experts", device.name, tp, nodes, spares)
        if key not in self._made:
            self._made[key] = ExpertStage(self.model, device, tp, nodes, spares)
        made: ExpertStage = self._made[key]
        return made

    def road(self, attention: Nodes, experts: Nodes) -> Road:
        """What they send each other."""
        return Road(
            self.attention(attention.device, attention.tp),
            self.experts(experts.device, experts.tp, experts.count, experts.spares),
            attention.count,
        )

    def colocated(
        self, device: Device, tp: int, dp: int, ep: int, spares: int = 0
    ) -> ColocatedStage:
        """Both halves on the same devices."""
        key = ("colocated", device.name, tp, dp, ep, spares)
        if key not in self._made:
            self._made[key] = ColocatedStage(self.model, device, tp, dp, ep, spares)
        made: ColocatedStage = self._made[key]
        return made
