"""A made-up model on made-up devices, for the search's tests: a roofline in a few lines."""

import math
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.memory import Ledger
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Step
from megainfer.planner.hardware import Device, Efficiency, Link, Utilisation
from megainfer.planner.search.deployment import Nodes

FULL = Utilisation.constant(1.0)
IDEAL = Efficiency({"any": FULL}, {"any": FULL}, {"any": FULL}, FULL, FULL, FULL, FULL, FULL, 0.0)


def made_up_device(
    name: str,
    gigabytes: float = 80,
    bandwidth: float = 2e12,
    flops: float = 300e12,
    nic: float = 25e9,
    price: float = 1.0,
    watts: float = 400.0,
    domain: int = 8,
) -> Device:
    return Device(
        name,
        "gpu",
        gigabytes * 1e9,
        bandwidth,
        {"bfloat16": flops},
        Link(400e9, 1e-6, domain),
        Link(nic, 5e-6),
        watts,
        price,
        IDEAL,
        {},
    )


@dataclass(frozen=True)
class MadeUpCosts:
    """bytes: of one layer's attention weights, of one expert, of one token's cache in one layer, of
    one token in a message. kinks: row counts beyond which experts take a kernel of their own more,
    so that tokens a second have several peaks. free_network: messages take no time. awake_seconds,
    waking_seconds: as a `Link` has them. hot: how many times its share the busiest expert has to
    do, which copies of it divide."""

    moe_layers: int = 8
    num_experts: int = 8
    top_k: int = 2
    attention_bytes: float = 2e8
    expert_bytes: float = 4e8
    kv_bytes: float = 4e3
    row_bytes: float = 12e3
    heads: int = 8
    kinks: tuple[int, ...] = ()
    free_network: bool = False
    awake_seconds: float = math.inf
    waking_seconds: float = 0.0
    hot: float = 1.0

    @property
    def experts_alike(self) -> bool:
        return self.hot == 1.0

    def attention(self, device: Device, tp: int) -> "_Attention":
        if tp > self.heads:
            raise ConfigError(f"{self.heads} heads on {tp} devices")
        return _Attention(self, device, tp)

    def experts(self, device: Device, tp: int, nodes: int, spares: int = 0) -> "_Experts":
        return _Experts(self, device, tp, nodes, spares)

    def road(self, attention: Nodes, experts: Nodes) -> "_Road":
        return _Road(self, attention, experts)

    def colocated(self, device: Device, tp: int, dp: int, ep: int, spares: int = 0) -> "_Colocated":
        return _Colocated(self, device, tp, dp, ep, spares)

    def held(self, nodes: int, spares: int = 0) -> int:
        return -(-self.num_experts // nodes) + spares

    def busiest(self, nodes: int, spares: int) -> float:
        """Experts' shares that the busiest node has."""
        shares = self.hot / (1 + spares) - 1 + self.num_experts / nodes
        return max(shares, self.num_experts / nodes)


@dataclass(frozen=True)
class _Attention:
    costs: MadeUpCosts
    device: Device
    tp: int

    def layer(self, step: Step, expert_nodes: int, spares: int = 0) -> Time:
        costs, device = self.costs, self.device
        weights = costs.attention_bytes / device.memory_bytes_per_second / self.tp
        arithmetic = step.rows * costs.attention_bytes / device.rate("bfloat16") / self.tp
        seen = step.decode_rows * step.contexts.mean
        seen += step.prefill_rows * step.prefill_contexts.mean / step.chunk
        cache = seen * costs.kv_bytes / device.memory_bytes_per_second / self.tp
        linear = Time(arithmetic=arithmetic) if arithmetic > weights else Time(weights=weights)
        return linear + Time(cache=cache, fixed=1e-6)

    def outside(self, step: Step) -> Time:
        return Time(weights=1e-5 / self.tp, fixed=1e-6 + 1e-9 * step.sampled)

    def memory(
        self, tokens: float, sequences: int, rows: int, micro_batches: int, expert_nodes: int
    ) -> Ledger:
        costs = self.costs
        slots = micro_batches * expert_nodes * rows * costs.row_bytes
        return _ledger(
            costs.moe_layers * costs.attention_bytes / self.tp,
            costs.moe_layers * costs.kv_bytes * tokens / self.tp,
            slots / self.tp,
        )


@dataclass(frozen=True)
class _Experts:
    costs: MadeUpCosts
    device: Device
    tp: int
    nodes: int
    spares: int = 0

    def layer(self, rows: float) -> Time:
        costs, device = self.costs, self.device
        held = costs.held(self.nodes)
        share = 1 - (1 - costs.top_k / costs.num_experts) ** rows
        read = held * share * costs.expert_bytes
        weights = read / device.memory_bytes_per_second / self.tp
        busiest = held if costs.experts_alike else costs.busiest(self.nodes, self.spares)
        flops = rows * costs.top_k * busiest / costs.num_experts * costs.expert_bytes
        arithmetic = flops / device.rate("bfloat16") / self.tp
        kinks = sum(rows > kink for kink in costs.kinks) * (weights + arithmetic) * 0.3
        bound = Time(arithmetic=arithmetic) if arithmetic > weights else Time(weights=weights)
        return bound + Time(fixed=1e-6 + kinks)

    def memory(self, rows: int, micro_batches: int, attention_nodes: int) -> Ledger:
        costs = self.costs
        held = costs.held(self.nodes, self.spares)
        weights = costs.moe_layers * held * costs.expert_bytes
        slots = micro_batches * attention_nodes * rows * costs.row_bytes
        return _ledger(weights / self.tp, 0, slots / self.tp)


@dataclass(frozen=True)
class _Road:
    costs: MadeUpCosts
    attention: Nodes
    experts: Nodes

    @property
    def awake_seconds(self) -> float:
        return self.costs.awake_seconds

    def dispatch(self, rows: float, asleep: bool = False) -> Time:
        costs, experts = self.costs, self.experts
        if costs.free_network:
            return Time()
        fanout = min(costs.top_k, experts.count)
        sent = rows * fanout * costs.row_bytes / self.attention.tp
        received = self.attention.count * rows * fanout * costs.row_bytes / experts.devices
        out = sent / self.attention.device.nic.bytes_per_second
        into = received / experts.device.nic.bytes_per_second
        return Time(network=max(out, into), fixed=5e-6 + asleep * costs.waking_seconds)

    combine = dispatch


@dataclass(frozen=True)
class _Colocated:
    costs: MadeUpCosts
    device: Device
    tp: int
    dp: int
    ep: int
    spares: int = 0

    def attention(self, step: Step) -> Time:
        return _Attention(self.costs, self.device, self.tp).layer(step, 0)

    def experts(self, step: Step) -> Time:
        return self._experts().layer(step.rows * self.dp)

    def exchange(self, step: Step) -> Time:
        if self.ep == 1 or self.costs.free_network:
            return Time()
        sent = step.rows * self.costs.top_k * self.costs.row_bytes / self.tp
        return Time(network=2 * sent / self.device.nic.bytes_per_second, fixed=1e-5)

    def outside(self, step: Step) -> Time:
        return _Attention(self.costs, self.device, self.tp).outside(step)

    def memory(self, tokens: float, sequences: int, rows: int) -> Ledger:
        own = _Attention(self.costs, self.device, self.tp).memory(tokens, sequences, rows, 1, 0)
        return own + self._experts().memory(0, 1, 1)

    def _experts(self) -> _Experts:
        width = self.tp * self.dp // self.ep
        return _Experts(self.costs, self.device, width, self.ep, self.spares)


def _ledger(weights: float, cache: float, slots: float) -> Ledger:
    lines = (("weights", weights), ("KV cache", cache), ("slots", slots))
    return Ledger(tuple((name, round(size)) for name, size in lines if size))
