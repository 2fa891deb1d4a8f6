"""What layers of a served model take beyond what kernels and the host's fixed work come to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from megainfer.calibration.measured import HostWork, LayerTime
from megainfer.planner.costs import AttentionStage, Contexts, ExpertStage, ModelCosts, Step
from megainfer.planner.hardware import Device


@dataclass(frozen=True, slots=True)
class Served:
    """A model that was served, with few rows a step and with many."""

    costs: ModelCosts
    few: LayerTime
    many: LayerTime


def with_row_work(device: Device, served: Served, sends: bool) -> Device:
    """The device with what each row adds to a layer beside products and caches.

    served: on such a device. sends: whether its attention node sent rows to an expert node, which
    is counted already.
    """
    attention = AttentionStage(served.costs, device)
    experts = ExpertStage(served.costs, device)
    hidden, top_k = served.costs.spec.hidden_size, served.costs.popularity.top_k

    def expected_attention(time: LayerTime) -> float:
        step = Step(time.rows, Contexts.at(max(1.0, time.context)))
        return attention.layer(step, int(sends)).total

    rows, few, many = served.many.rows - served.few.rows, served.few, served.many
    of_attention = many.attention - few.attention
    of_attention -= expected_attention(many) - expected_attention(few)
    of_experts = many.experts - few.experts
    of_experts -= experts.layer(many.rows).total - experts.layer(few.rows).total
    efficiency = replace(
        device.efficiency,
        attention_channel_seconds=max(0.0, of_attention) / rows / hidden,
        expert_channel_seconds=max(0.0, of_experts) / rows / top_k / hidden,
    )
    return replace(device, efficiency=efficiency)


def taking_turns(apart: HostWork, together: HostWork, served: Served, in_one: Served) -> HostWork:
    """The host's work of two processes that take turns on the same cores.

    Each has gone to sleep by the time that the other is done, and must be woken with all of its
    threads. A small model's stages end before; so what that takes is what layers of a large one
    take more than in one process, with few rows: what each row adds is `with_row_work`'s. apart,
    together: of the small model. served, in_one: the large one in two processes, and in one.
    """
    waking = _beside_steps(served.few, apart) - _beside_steps(in_one.few, together)
    known = apart.attention_layer + apart.expert_layer + 2 * apart.transfer
    more = waking / served.costs.moe_layers
    more += together.attention_layer + together.expert_layer - known
    half = max(0.0, more) / 2
    return replace(
        apart,
        attention_layer=apart.attention_layer + half,
        expert_layer=apart.expert_layer + half,
    )


def with_cold_steps(
    hosts: Sequence[HostWork], together: HostWork, in_one: Served
) -> list[HostWork]:
    """The host's work, with steps that find nothing of theirs in a cache any more.

    What a step takes beside its layers is measured by a small model, where it comes so often that
    all of it stays in caches; by the time that a large model's layers are done, it has left them.
    together: of the small model in one process. in_one: the large one there, which has no waiting
    that could be mistaken for it.
    """
    few = in_one.few
    beside = few.step - in_one.costs.moe_layers * (few.attention + few.experts)
    more = max(0.0, beside - together.step - few.rows * together.sequence)
    return [replace(host, step=host.step + more) for host in hosts]


SURELY = 1.2
"""By how many times a wait is longer or shorter than another so that all of its kind are."""


def among_sleepers(apart: HostWork, served: Served, awake: float) -> HostWork:
    """The host's work of two processes on cores of their own, one of which sleeps while the other
    computes for long.

    A small model's messages find who waits for them looking, and all that sending takes still in a
    cache; so what they take is asked of a large one, by how long their receivers had waited.
    apart: of the small model. awake: for how many seconds a process looks before it sleeps.
    """
    times = (served.few, served.many)
    waited = [
        *((time.attention, time.dispatch) for time in times),
        *((time.experts, time.reply) for time in times),
    ]
    looking = [taken for wait, taken in waited if taken and wait * SURELY < awake]
    asleep = [taken for wait, taken in waited if taken and wait > SURELY * awake]
    transfer = max(apart.transfer, fmean(looking) if looking else 0.0)
    waking = max(0.0, fmean(asleep) - transfer) if asleep else 0.0
    return replace(apart, transfer=transfer, awake=awake, waking=waking)


def _beside_steps(time: LayerTime, host: HostWork) -> float:
    """Seconds of all layers."""
    return time.step - host.step - host.sequence * time.rows
