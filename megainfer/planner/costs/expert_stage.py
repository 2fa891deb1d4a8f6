"""What an expert node takes: seconds of its stage, bytes of its memory."""

from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil

from megainfer.errors import ConfigError
from megainfer.memory import Ledger, expert_node, expert_workspace
from megainfer.planner.costs.attention_stage import copy_seconds, message_geometry, process
from megainfer.planner.costs.collectives import all_reduce
from megainfer.planner.costs.model import ModelCosts
from megainfer.planner.costs.nodes import Nodes
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.hardware import Device

EXPERT_KERNELS = 4
"""Sorting choices, gate and up, down, summing."""


@dataclass(frozen=True, slots=True)
class ExpertStage:
    """Each of `count` expert nodes of `tp` devices, which share each of its experts. spares:
    experts that a node holds beyond its share, copies of popular ones.

    Times are of the busiest node, which all attention nodes wait for.

    Raises ConfigError for more nodes than experts, or more devices than an expert has channels.
    """

    costs: ModelCosts
    device: Device
    tp: int = 1
    count: int = 1
    spares: int = 0
    nodes: Nodes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        channels = self.costs.expert_weights // (3 * self.costs.spec.hidden_size)
        if not 1 <= self.tp <= channels:
            raise ConfigError(f"{self.tp} devices can't share an expert of {channels} channels")
        object.__setattr__(self, "nodes", self.costs.nodes(self.count, self.spares))

    def layer(self, rows: float) -> Time:
        """T_e: of `rows` tokens of all attention nodes together, who are served at once."""
        sent = rows * self.nodes.most_sent
        summed = all_reduce(self.device, sent * self.costs.row_bytes, self.tp)
        return self.products(rows) + summed

    def products(self, rows: float) -> Time:
        """The same without what its devices exchange."""
        if not rows:
            return Time()
        costs, device, efficiency = self.costs, self.device, self.device.efficiency
        nodes = self.nodes
        active, choices = nodes.most_active(rows), nodes.most_choices(rows)
        dtype = costs.multiplied(costs.precision.expert_dtype, device.kind == "gpu")
        # Those of the node with most choices, as many as are active there on average.
        of_one = choices / max(nodes.busiest_active(rows), min(rows, 1.0))
        used = efficiency.expert_product(dtype).at(max(1.0, of_one))
        flops = 2 * costs.expert_weights / self.tp * choices
        arithmetic = flops / (device.rate(dtype) * used)
        size = active * costs.expert_bytes / self.tp
        read = size / (device.memory_bytes_per_second * efficiency.experts_read.at(size))
        summed = (choices + rows * nodes.most_sent) * costs.row_bytes
        moved = choices * costs.spec.hidden_size * efficiency.expert_channel_seconds
        return Time(
            weights=0.0 if arithmetic > read else read,
            arithmetic=arithmetic if arithmetic > read else 0.0,
            copied=copy_seconds(device, summed) + moved,
            fixed=EXPERT_KERNELS * efficiency.launch_seconds + efficiency.expert_layer_seconds,
        )

    def memory(self, rows: int, micro_batches: int, attention_nodes: int) -> Ledger:
        """Bytes of one device of the node with most experts. rows: of one attention node's message
        at most."""
        geometry = message_geometry(self.costs, attention_nodes, self.count, micro_batches, rows)
        slots = ceil(geometry.expert_payloads.bytes / self.tp)
        workspace = self.workspace(attention_nodes * rows)
        return self.held() + process(self.device, workspace, slots)

    def held(self) -> Ledger:
        """Weights of one device."""
        weights = _weight_bytes(self.costs, self.nodes.most_experts)
        return Ledger((("weights", ceil(weights / self.tp)),))

    def workspace(self, rows: int) -> int:
        """Bytes that a batch of so many rows needs."""
        return rows * _workspace_of_a_row(self.costs)


@lru_cache(maxsize=4096)
def _weight_bytes(costs: ModelCosts, experts: int) -> int:
    return expert_node(costs.spec, costs.precision, experts).total


@lru_cache(maxsize=256)
def _workspace_of_a_row(costs: ModelCosts) -> int:
    return expert_workspace(costs.spec, costs.precision, 1)
