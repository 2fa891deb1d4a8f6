"""What a seed stands for: which fault, in whom, when, under which load, on which instance."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    KILL = "SIGKILL"
    STOP = "SIGSTOP"
    STOP_AND_GO = "SIGSTOP, SIGCONT late"
    RAISE = "raise"
    NAN = "NaN"
    SLOW = "slow x10"
    LINK = "link closed"
    MEMORY = "out of memory"
    UNREADABLE = "checkpoint unreadable"
    HEADER = "corrupt header"
    STUCK = "stuck"  # only where a test asks for it
    CUDA = "CUDA error"  # as STUCK


DRAWN = tuple(fault for fault in Fault if fault not in (Fault.STUCK, Fault.CUDA))


class Target(StrEnum):
    SERVER = "server"
    ATTENTION = "attention"
    EXPERT = "expert"
    SUPERVISOR = "supervisor"


class Phase(StrEnum):
    LOAD = "load"
    WARM_UP = "warm-up"
    PREFILL = "prefill"
    DECODE = "decode"
    COMBINE = "combine"
    DRAIN = "drain"
    SCALE = "scale"
    RECOVERY = "recovery"


NODES = (Target.ATTENTION, Target.EXPERT)
STARTING = (Phase.LOAD, Phase.WARM_UP)
AT_WORK = (Phase.PREFILL, Phase.DECODE, Phase.COMBINE)
GRAVE = frozenset({Fault.KILL, Fault.RAISE, Fault.LINK, Fault.MEMORY})
"""After which a process is gone at once, whoever it is."""


@dataclass(frozen=True)
class Shape:
    """replicas: of each layer, experts that an expert node holds beyond its share."""

    attention: int
    experts: int
    replicas: int = 0

    @property
    def replicated(self) -> bool:
        return self.replicas > 0

    def __str__(self) -> str:
        return f"{self.attention}x{self.experts}" + (f"+{self.replicas}" if self.replicas else "")


EXPERTS = 8
"""Of each layer of the model."""
SHAPES = (
    Shape(1, 1),
    Shape(2, 2),
    Shape(3, 2),
    Shape(2, 3),
    Shape(2, 2, replicas=4),
    Shape(3, 2, replicas=4),
    Shape(2, 3, replicas=3),
)
"""Replicas are as many as it takes for every expert to outlive any one node."""


@dataclass(frozen=True)
class Draw:
    """node: the target's number; None: whichever comes to it first. nth: at which of the events
    that belong to the phase. variant: of what there are several ways to do. resume: seconds until
    SIGCONT. wish: what requests are drawn by."""

    seed: int
    fault: Fault
    target: Target
    phase: Phase
    load: int
    shape: Shape
    node: int | None
    nth: int
    variant: int
    resume: float
    first_node: tuple[Target, int]
    """Of a double fault: who is killed first."""

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.fault} of {self.target} at {self.phase} #{self.nth}, "
            f"{self.load} requests, {self.shape}"
        )


@dataclass(frozen=True)
class Scope:
    """Among what to draw."""

    shapes: Sequence[Shape] = SHAPES
    phases: Sequence[Phase] = tuple(Phase)
    targets: Sequence[Target] = tuple(Target)
    loads: Sequence[int] = (1, 64)


EVERYTHING = Scope()


def draw(seed: int, scope: Scope = EVERYTHING) -> Draw:
    """The same for ever."""
    rng = random.Random(f"chaos {seed}")
    while True:
        fault, target = rng.choice(DRAWN), rng.choice(scope.targets)
        phase = rng.choice(scope.phases)
        if _is_possible(fault, target, phase):
            break
    load, chosen = rng.choice(scope.loads), rng.choice(scope.shapes)
    first = rng.choice(NODES)
    return Draw(
        seed=seed,
        fault=fault,
        target=target,
        phase=phase,
        load=load,
        shape=chosen,
        # With one request it has to be whoever has it.
        node=None if load == 1 else rng.randrange(_count(target, chosen)),
        nth=_nth(rng, target, phase),
        variant=rng.randrange(100),
        resume=rng.uniform(0.2, 3.0),
        first_node=(first, rng.randrange(_count(first, chosen))),
    )


def _is_possible(fault: Fault, target: Target, phase: Phase) -> bool:
    if fault is Fault.UNREADABLE:  # on reload: what is read is read by nodes that come back
        return target in NODES and phase in (Phase.RECOVERY, Phase.SCALE)
    if fault in (Fault.NAN, Fault.HEADER):
        return target in NODES and phase not in (*STARTING, Phase.SCALE)
    if fault is Fault.LINK:
        return target is not Target.SUPERVISOR and phase is not Phase.LOAD
    return True


def _count(target: Target, shape: Shape) -> int:
    match target:
        case Target.ATTENTION:
            return shape.attention
        case Target.EXPERT:
            return shape.experts
    return 1


def _nth(rng: random.Random, target: Target, phase: Phase) -> int:
    if phase is Phase.WARM_UP:
        return rng.randint(1, 2)
    if target is Target.SUPERVISOR:
        return rng.randint(1, 12)
    if target is Target.SERVER:
        return 1 if phase is Phase.LOAD else rng.randint(1, 15)
    most = {Phase.LOAD: 20, Phase.PREFILL: 4, Phase.SCALE: 20}
    return rng.randint(1, most.get(phase, 60))
