"""The plan's terms of one instance under one load, measured or expected alike."""

from dataclasses import dataclass

from megainfer.planner.costs import Time
from megainfer.planner.search.stages import Pace, Stages


@dataclass(frozen=True, slots=True)
class Load:
    """rows: sequences that decode in a step of one micro-batch of one attention node, the mean.
    prefill_rows: tokens of prompts in it. context: positions that a decoded token sees, the mean.
    micro_batches: m. attention, experts: nodes. layers: with experts, in a step."""

    rows: float
    prefill_rows: float
    context: float
    micro_batches: int
    attention: int
    experts: int
    layers: int

    @property
    def batch(self) -> float:
        """Sequences that decode at a time in the instance."""
        return self.rows * self.micro_batches * self.attention


@dataclass(frozen=True, slots=True)
class Terms:
    """Seconds. attention, experts: T_a and T_e of one layer. transfer: T_c, of one direction, from
    the beginning of a send to the receiver's noticing. outside: what an attention node does once a
    step. token: between two tokens of a sequence."""

    attention: float
    experts: float
    transfer: float
    outside: float
    token: float

    @classmethod
    def paced(
        cls, attention: float, experts: float, transfer: float, outside: float, load: Load
    ) -> "Terms":
        """With the time between tokens that these make where roles are apart."""
        token = pace_of(attention, experts, transfer, outside, load).seconds
        return cls(attention, experts, transfer, outside, token)


def pace_of(attention: float, experts: float, transfer: float, outside: float, load: Load) -> Pace:
    """What sets the pace of micro-batches alike that take turns."""
    a, e, c, step = (Time(fixed=seconds) for seconds in (attention, experts, transfer, outside))
    stages = Stages(a, e, c, c, step)
    return Pace.apart(stages, stages, load.layers, load.micro_batches)
