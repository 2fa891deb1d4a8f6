"""What a plan expects of an instance: from hardware's figures, or from what its start measured."""

from dataclasses import dataclass
from typing import Protocol

from megainfer.planner.costs import Contexts, Road, Step, Time
from megainfer.planner.costs.attention_stage import ADDED, PACKED
from megainfer.planner.live.terms import Load, Terms
from megainfer.planner.profiles import StageProfile
from megainfer.planner.search.deployment import Nodes
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.stages import Pace, Stages


class Outlook(Protocol):
    """What may be asked about loads and numbers of nodes that there aren't now."""

    def terms(self, load: Load) -> Terms:
        """Of an instance with so many nodes under this load."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """From a model's costs on devices. attention, experts: one node of each role, while all others
    wait. busy_attention, busy_experts: the same while all others are at work. together: both roles
    are one process, which `attention` says all of."""

    stages: ModelStages
    attention: Nodes
    experts: Nodes
    busy_attention: Nodes
    busy_experts: Nodes
    together: bool = False

    def terms(self, load: Load) -> Terms:
        """See `Outlook`."""
        step = Step(
            load.rows,
            Contexts.at(max(1.0, load.context)),
            load.prefill_rows,
            Contexts(1, max(1.0, load.context)),
            max(1.0, load.prefill_rows),
        )
        return self._together(step, load) if self.together else self._apart(step, load)

    def _apart(self, step: Step, load: Load) -> Terms:
        alone = self._stages(step, load, self.attention, self.experts)
        busy = self._stages(step, load, self.busy_attention, self.busy_experts)
        of_attention, of_experts = _at_work(busy, load)
        stages = Stages(
            _between(alone.attention, busy.attention, of_attention),
            _between(alone.experts, busy.experts, of_experts),
            busy.dispatch,
            busy.combine,
            _between(alone.outside, busy.outside, of_attention),
        )
        road = self._road(self.busy_attention, self.busy_experts, load)
        woken = stages.with_waking(road, step.rows, load.layers, load.micro_batches)
        if load.micro_batches == 1:  # else it happens while the busier role works
            stages = woken
        pace = Pace.apart(stages, stages, load.layers, load.micro_batches)
        # As it is measured: from the beginning of a send, and so with a message's packing.
        transfer = woken.dispatch.total + woken.combine.total
        return _terms(
            stages, (transfer + PACKED / (PACKED + ADDED) * stages.attention.copied) / 2, pace
        )

    def _stages(self, step: Step, load: Load, attention: Nodes, experts: Nodes) -> Stages:
        attention, experts = _counted(attention, load.attention), _counted(experts, load.experts)
        half = self.stages.attention(attention.device, attention.tp)
        served = self.stages.experts(experts.device, experts.tp, experts.count)
        road = self._road(attention, experts, load)
        return Stages(
            half.layer(step, experts.count),
            served.layer(step.rows * attention.count),
            road.dispatch(step.rows),
            road.combine(step.rows),
            half.outside(step),
        )

    def _road(self, attention: Nodes, experts: Nodes, load: Load) -> Road:
        return self.stages.road(
            _counted(attention, load.attention), _counted(experts, load.experts)
        )

    def _together(self, step: Step, load: Load) -> Terms:
        nodes = self.attention
        whole = self.stages.colocated(nodes.device, nodes.tp, 1, 1)
        exchange = whole.exchange(step) * 0.5
        stages = Stages(
            whole.attention(step), whole.experts(step), exchange, exchange, whole.outside(step)
        )
        pace = Pace.together(stages, load.layers)
        terms = _terms(stages, exchange.total, pace)
        # Micro-batches of one process have their steps one after the other.
        return Terms(
            terms.attention,
            terms.experts,
            terms.transfer,
            terms.outside,
            terms.token * load.micro_batches,
        )


@dataclass(frozen=True, slots=True)
class Profiled:
    """From stages as they were measured when the instance started, for short contexts.

    attention, experts: nodes that there were. What an attention node does once a step is spread
    over its layers.
    """

    profile: StageProfile
    attention: int
    experts: int

    def terms(self, load: Load) -> Terms:
        """See `Outlook`. Other numbers of expert nodes share the experts' work evenly."""
        rows = load.rows + load.prefill_rows
        sent = rows * load.attention / self.attention
        experts = self.profile.expert.at(sent) * self.experts / load.experts
        return Terms.paced(
            self.profile.attention.at(rows), experts, self.profile.transfer.at(rows), 0.0, load
        )


@dataclass(frozen=True, slots=True)
class Proportional:
    """What can be said knowing nothing but one load's terms: that more rows take no more than in
    proportion, which is true of attention over long contexts and of arithmetic, and cautious for
    whatever reads the same weights for more rows."""

    terms_now: Terms
    now: Load

    def terms(self, load: Load) -> Terms:
        """See `Outlook`."""
        own = (load.rows + load.prefill_rows) / (self.now.rows + self.now.prefill_rows)
        sent = own * load.attention / self.now.attention * self.now.experts / load.experts
        terms = self.terms_now
        return Terms.paced(
            terms.attention * own,
            terms.experts * sent,
            terms.transfer * own,
            terms.outside * own,
            load,
        )


def _at_work(stages: Stages, load: Load) -> tuple[float, float]:
    """While a node computes, the mean share of the others that do so too: of an attention node, and
    of an expert node. Those of its own role keep step with it. Those of the other role wait for it
    where there is one micro-batch; else the busier role always works, and the other as long as its
    stage takes of the busier one's."""
    attention = stages.attention.total + stages.outside.total / load.layers
    experts = stages.experts.total
    turns = load.micro_batches > 1
    others = load.attention + load.experts - 1
    beside_attention = min(1.0, experts / attention) if turns else 0.0
    beside_experts = min(1.0, attention / experts) if turns else 0.0
    return (
        (load.attention - 1 + load.experts * beside_attention) / others,
        (load.experts - 1 + load.attention * beside_experts) / others,
    )


def _between(alone: Time, busy: Time, share: float) -> Time:
    """Of work that so much of its time is beside others'."""
    return alone * (1 - share) + busy * share


def _counted(nodes: Nodes, count: int) -> Nodes:
    return Nodes(nodes.device, nodes.tp, count)


def _terms(stages: Stages, transfer: float, pace: Pace) -> Terms:
    return Terms(
        stages.attention.total,
        stages.experts.total,
        transfer,
        stages.outside.total,
        pace.seconds,
    )
