"""Whether apart pays, in words."""

from collections.abc import Iterator
from dataclasses import dataclass

from megainfer.planner.search.prediction import Limit, Prediction
from megainfer.planner.search.workload import Objective, Workload

EQUAL = 0.02
"""A difference that no such prediction can tell."""
NOTICED = 0.1
"""A share of time that is worth a word."""
UNITS = {
    Objective.GPU: "tokens a second and device",
    Objective.COST: "tokens a second and unit of price",
    Objective.WATT: "tokens a joule",
    Objective.LATENCY: "tokens a second of one sequence",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """ratio: of the best plan apart to the best colocated one, in what was asked for; None where
    one of them is missing. reasons: what decides, each a clause."""

    objective: Objective
    ratio: float | None
    apart_is_there: bool
    reasons: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Such as "apart wins by 1.40x in tokens a second and device: ..."."""
        why = f": {'; '.join(self.reasons)}" if self.reasons else ""
        unit = UNITS[self.objective]
        if self.ratio is None:
            only, other = ("apart", "colocated") if self.apart_is_there else ("colocated", "apart")
            return f"only {only} is possible here, no {other} plan fits and is in time{why}"
        if self.ratio > 1 + EQUAL:
            return f"apart wins by {self.ratio:.2f}x in {unit}{why}"
        if self.ratio >= 1 - EQUAL:
            return f"apart and colocated are equal in {unit} ({self.ratio:.2f}x){why}"
        return (
            f"apart doesn't pay here, colocated gives {1 / self.ratio:.2f}x as many {unit}, "
            f"because {'; '.join(self.reasons)}"
        )


def judge(
    apart: Prediction | None,
    together: Prediction | None,
    objective: Objective,
    workload: Workload,
    ratio: float | None = None,
) -> Verdict:
    """The best of each kind against each other. ratio: of their values, where it is known better
    than as predicted."""
    if apart is None or together is None:
        return Verdict(objective, None, apart is not None, ())
    if ratio is None:
        ratio = apart.value(objective) / together.value(objective)
    why = _why_it_pays if ratio > 1 + EQUAL else _why_not
    reasons = tuple(why(apart, together, workload)) if abs(ratio - 1) > EQUAL else ()
    return Verdict(objective, ratio, True, reasons)


def _why_it_pays(apart: Prediction, together: Prediction, workload: Workload) -> Iterator[str]:
    attention, experts = apart.deployment.attention.device, apart.deployment.experts.device
    if attention.name != experts.name:
        bandwidth = attention.memory_bytes_per_second / experts.memory_bytes_per_second
        rate = experts.rate("bfloat16") / attention.rate("bfloat16")
        yield (
            f"{attention.name} has {bandwidth:.1f}x the memory bandwidth of {experts.name}, which "
            f"has {rate:.1f}x its arithmetic"
        )
    own, theirs = (_tokens_together(plan, workload) for plan in (apart, together))
    if own > theirs * (1 + NOTICED):
        yield f"experts compute {own:.0f} tokens at a time instead of {theirs:.0f}"
    exchanged = _exchange_share(together)
    if exchanged > NOTICED:
        yield f"colocated, {exchanged:.0%} of a step is exchange, which apart runs beside computing"
    batch = apart.deployment.batch / apart.deployment.devices
    other = together.deployment.batch / together.deployment.devices
    if batch > other * (1 + NOTICED):
        yield f"{batch:.0f} sequences a device decode at a time instead of {other:.0f}"
    yield f"{apart.bound} sets the pace apart, {together.bound} colocated"


def _why_not(apart: Prediction, together: Prediction, workload: Workload) -> Iterator[str]:
    attention, experts = apart.pace.idle()
    if attention > NOTICED:
        yield f"attention nodes wait {attention:.0%} of the time"
    if experts > NOTICED:
        yield f"expert nodes wait {experts:.0%} of the time"
    own, theirs = (_tokens_together(plan, workload) for plan in (apart, together))
    if own <= theirs * (1 + NOTICED):
        yield f"colocated, experts compute {theirs:.0f} tokens at a time, apart {own:.0f}"
    exchanged = _exchange_share(together)
    if exchanged <= NOTICED:
        yield f"exchange takes only {exchanged:.0%} of a colocated step"
    if apart.limit is Limit.MEMORY and together.limit is not Limit.MEMORY:
        yield "memory of the attention nodes limits the batch apart"
    yield f"{apart.bound} sets the pace apart"


def _tokens_together(plan: Prediction, workload: Workload) -> float:
    """That come to the experts in one micro-batch's step."""
    return workload.step(plan.deployment.rows).rows * plan.deployment.attention.count


def _exchange_share(plan: Prediction) -> float:
    ways = plan.stages.dispatch.total + plan.stages.combine.total
    return plan.layers * ways / plan.tpot_seconds
