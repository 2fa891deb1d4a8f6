"""What an attention node takes: seconds of its stage, bytes of its memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

from megainfer.config import BLOCK_SIZE
from megainfer.m2n.geometry import Geometry
from megainfer.memory import NODE_BYTES, Ledger, gpu_graphs, gpu_process
from megainfer.models.spec import LayerSpec
from megainfer.planner.costs.attend import cache_work
from megainfer.planner.costs.collectives import all_gather, all_reduce
from megainfer.planner.costs.model import ModelCosts
from megainfer.planner.costs.rank import Rank, RankLayer, rank_of
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.hardware import Device

STEP_KERNELS = 4
"""The embedding, the last norm, the head, drawing tokens."""
FULL_TILES = 512
"""Rows at which products reach what they ever do, as attention's arithmetic counts as doing."""
PACKED, ADDED = 2, 3
"""How often a row that is sent is moved: read and written when it is packed; its reply read, and
read and written where it is added."""


@dataclass(frozen=True, slots=True)
class AttentionStage:
    """One attention node of `tp` devices, which share its weights and heads.

    Raises ConfigError for more devices than heads.
    """

    costs: ModelCosts
    device: Device
    tp: int = 1
    rank: Rank = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rank", rank_of(self.costs, self.device, self.tp))

    def layer(self, step: Step, expert_nodes: int = 0, spares: int = 0) -> Time:
        """T_a: the mean of a layer with experts.

        expert_nodes: that its rows are packed for and replies come from; 0 where nothing is sent.
        spares: experts that each of them holds beyond its share.
        """
        efficiency = self.device.efficiency
        time = self._layers(step, True) * (1 / self.costs.moe_layers)
        if expert_nodes:
            time += self._exchanged(step, self.costs.nodes(expert_nodes, spares).fanout)
        channels = step.rows * self.costs.spec.hidden_size
        return time + Time(
            copied=channels * efficiency.attention_channel_seconds,
            fixed=efficiency.attention_layer_seconds,
        )

    def _exchanged(self, step: Step, fanout: float) -> Time:
        """Each device packs its columns of the rows and adds up those of the replies, and the
        devices gather the sum. fanout: nodes that a row goes to, on average."""
        row_bytes = self.costs.row_bytes
        own = (PACKED + ADDED) * step.rows * fanout * row_bytes / self.tp
        gathered = all_gather(self.device, step.rows * row_bytes, self.tp)
        return gathered + Time(copied=copy_seconds(self.device, own))

    def outside(self, step: Step) -> Time:
        """Once a step, beside layers with experts: the embedding, layers without experts, the head,
        drawing tokens, and the host's work."""
        costs, efficiency, sampled = self.costs, self.device.efficiency, step.sampled
        logits = 2 * 4 * sampled * costs.spec.vocab_size / self.tp
        embedded = 2 * step.rows * costs.row_bytes
        arithmetic = (
            sampled * self.rank.head.flops * self._inverse_rates(sampled)[self.rank.head.dtype]
        )
        read = self.rank.head.read_seconds if sampled else 0.0
        return self._layers(step, False) + Time(
            weights=read if read >= arithmetic else 0.0,
            arithmetic=arithmetic if arithmetic > read else 0.0,
            copied=copy_seconds(self.device, logits + embedded),
            fixed=STEP_KERNELS * efficiency.launch_seconds
            + efficiency.step_seconds
            + efficiency.sequence_seconds * sampled,
        )

    def memory(
        self, tokens: float, sequences: int, rows: int, micro_batches: int, expert_nodes: int = 0
    ) -> Ledger:
        """Bytes of one device. tokens: that its KV cache has room for. sequences: that run, each
        with its recurrent state. rows: the most of a step, which messages have room for.
        expert_nodes: 0 where nothing is sent."""
        slots = 0
        if expert_nodes:
            geometry = message_geometry(self.costs, 1, expert_nodes, micro_batches, rows)
            slots = ceil(geometry.attention_payloads.bytes / self.tp)
        workspace = self.workspace(rows, micro_batches, sequences)
        return self.held(tokens, sequences) + process(self.device, workspace, slots)

    def held(self, tokens: float, sequences: int) -> Ledger:
        """Weights, caches and states of one device."""
        states = ceil(sequences * self.rank.state_bytes)
        blocks = ceil(tokens / BLOCK_SIZE)
        return Ledger(
            (
                ("weights", self.rank.weight_bytes),
                ("KV cache", ceil(blocks * BLOCK_SIZE * self.rank.kv_bytes)),
                *((("recurrent states", states),) if states else ()),
            )
        )

    def workspace(self, rows: int, micro_batches: int, sequences: int) -> int:
        """Bytes of one device that steps need beside what it holds."""
        return self.rank.workspace.bytes(rows, micro_batches, min(sequences, rows))

    def _layers(self, step: Step, with_experts: bool) -> Time:
        """Of all layers with experts, or of all without."""
        time, inverse = Time(), self._inverse_rates(step.rows)
        if not step.rows:
            return time
        for own in self.rank.layers:
            if own.has_experts is with_experts:
                one = self._products(own, step.rows, inverse) + self._cache(own.layer, step)
                if self.tp > 1:
                    summed = all_reduce(self.device, step.rows * self.costs.row_bytes, self.tp)
                    one += summed * own.reductions
                time += one * own.count
        return time

    def _products(self, layer: RankLayer, rows: float, inverse: Mapping[str, float]) -> Time:
        """Those of one layer, and the launches of all its kernels."""
        weights = arithmetic = 0.0
        for product in layer.products:
            computed = rows * product.flops * inverse[product.dtype]
            if computed > product.read_seconds:
                arithmetic += computed
            else:
                weights += product.read_seconds
        fixed = layer.kernels * self.device.efficiency.launch_seconds
        return Time(weights=weights, arithmetic=arithmetic, fixed=fixed)

    def _inverse_rates(self, rows: float) -> Mapping[str, float]:
        """Seconds of a FLOP of a dense product of so many rows, by arithmetic."""
        rate, product = self.device.rate, self.device.efficiency.product
        at = max(rows, 1.0)
        return {dtype: 1 / (rate(dtype) * product(dtype).at(at)) for dtype in self.rank.dtypes}

    def _cache(self, layer: LayerSpec, step: Step) -> Time:
        device, costs, on_gpu = self.device, self.costs, self.device.kind == "gpu"
        dtype = costs.precision.dtype
        work = cache_work(layer.attention, step, costs.cache_format, self.tp, not on_gpu)
        flops = work.tiled_flops if on_gpu else work.flops
        arithmetic = flops / (device.rate(dtype) * device.efficiency.product(dtype).at(FULL_TILES))
        reached = device.efficiency.attention(dtype).at(work.bytes)
        read = work.bytes / (device.memory_bytes_per_second * reached)
        return Time(arithmetic=arithmetic) if arithmetic > read else Time(cache=read)


def copy_seconds(device: Device, num_bytes: float) -> float:
    """Of bytes that are read and written."""
    if not num_bytes:
        return 0.0
    return num_bytes / (device.memory_bytes_per_second * device.efficiency.copied.at(num_bytes))


def message_geometry(
    costs: ModelCosts, attention_nodes: int, expert_nodes: int, micro_batches: int, rows: int
) -> Geometry:
    """Of M2N with payloads on devices."""
    spec = costs.spec
    return Geometry(
        attention_nodes,
        expert_nodes,
        micro_batches,
        rows,
        spec.hidden_size,
        costs.popularity.top_k,
        costs.precision.dtype,
        "device",
    )


def process(device: Device, workspace: int, slots: int) -> Ledger:
    """What a node takes of its device beside weights and caches."""
    if device.kind == "cpu":
        lines = (("programs", NODE_BYTES), ("workspace", workspace))
        return Ledger((*lines, *((("M2N", slots),) if slots else ())))
    return gpu_process(workspace, slots) + gpu_graphs(int(device.memory_bytes))
