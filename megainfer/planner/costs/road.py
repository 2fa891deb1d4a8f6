"""What messages take between attention nodes and expert nodes."""

from dataclasses import dataclass

from megainfer.planner.costs.attention_stage import AttentionStage
from megainfer.planner.costs.expert_stage import ExpertStage
from megainfer.planner.costs.model import ModelCosts
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.hardware import Device, Link, Utilisation


@dataclass(frozen=True, slots=True)
class Road:
    """All messages of one layer and micro-batch, of `attention_nodes` nodes that send at once.

    One expert node gets from all attention nodes what one attention node sends to all expert nodes,
    and whichever end takes longer decides. Each device of a node sends and receives its share of
    the columns. Where all of an instance are in one scale-up domain, they use it, else their NICs.
    """

    attention: AttentionStage
    experts: ExpertStage
    attention_nodes: int

    @property
    def costs(self) -> ModelCosts:
        return self.attention.costs

    @property
    def in_one_domain(self) -> bool:
        """Whether all devices reach each other by their links."""
        devices = self.attention_nodes * self.attention.tp + self.experts.count * self.experts.tp
        ends = (self.attention.device, self.experts.device)
        return ends[0].name == ends[1].name and devices <= ends[0].link.devices

    @property
    def awake_seconds(self) -> float:
        """For how long whoever waits for a message looks for it before it sleeps."""
        return min(link.awake_seconds for link in self._links)

    def dispatch(self, rows: float, asleep: bool = False) -> Time:
        """T_c, from attention nodes with so many rows each to the experts. asleep: those must be
        woken."""
        return self._transfer(rows, self.costs.dispatch_bytes, asleep)

    def combine(self, rows: float, asleep: bool = False) -> Time:
        """T_c, of the replies. asleep: attention nodes must be woken."""
        return self._transfer(rows, self.costs.row_bytes, asleep)

    @property
    def _links(self) -> tuple[Link, Link]:
        near = self.in_one_domain
        return _road(self.attention.device, near)[0], _road(self.experts.device, near)[0]

    def _transfer(self, rows: float, row_bytes: int, asleep: bool) -> Time:
        if not rows:
            return Time()
        attention, experts, nodes = self.attention, self.experts, self.experts.nodes
        one = rows * row_bytes * nodes.fanout
        most = rows * row_bytes * nodes.most_sent
        # Columns are cut for whichever end has more devices.
        message = one / nodes.count / max(attention.tp, experts.tp)
        near = self.in_one_domain
        seconds = max(
            one / attention.tp / _rate(attention.device, near, message),
            self.attention_nodes * most / experts.tp / _rate(experts.device, near, message),
        )
        latency = max(link.latency_seconds for link in self._links)
        if asleep:
            latency += max(link.waking_seconds for link in self._links)
        return Time(network=seconds, fixed=latency)


def _road(device: Device, near: bool) -> tuple[Link, Utilisation]:
    """The link, or the NIC, and how much of it messages reach."""
    efficiency = device.efficiency
    return (device.link, efficiency.link) if near else (device.nic, efficiency.nic)


def _rate(device: Device, near: bool, message: float) -> float:
    """Bytes a second of messages of so many bytes."""
    link, utilisation = _road(device, near)
    return link.bytes_per_second * utilisation.at(message)
