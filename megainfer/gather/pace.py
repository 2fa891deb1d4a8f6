"""What is usual on an expert node, and so how long its gathers wait."""

from dataclasses import dataclass, field

from megainfer.errors import ConfigError


@dataclass(frozen=True)
class Wait:
    """A bound in seconds: so many times what is usual, but within `floor` and `cap`."""

    times: float
    floor: float
    cap: float

    def __post_init__(self) -> None:
        if not (0 < self.floor <= self.cap < float("inf") and self.times > 0):
            raise ConfigError(f"a wait needs times > 0 and 0 < floor <= cap < inf, got {self}")

    def seconds(self, usual: float | None) -> float:
        """The bound; before anything is usual, the cap."""
        return self.cap if usual is None else min(max(self.times * usual, self.floor), self.cap)


@dataclass(frozen=True)
class GatherLimits:
    """How long gathers wait.

    `layer` multiplies the time that m micro-batches need for one layer if nobody is slow (about
    m T_f), `step` the usual time of all layers. `alone_share` limits the part of this node's time
    that slow attention nodes get for batches of their own, as a multiple of their part among the
    attention nodes; but they too wait no longer than `step` says.
    """

    layer: Wait = Wait(times=1.5, floor=0.002, cap=1.0)
    step: Wait = Wait(times=1.5, floor=0.01, cap=10.0)
    alone_share: float = 1.5

    def __post_init__(self) -> None:
        if not 0 < self.alone_share < float("inf"):
            raise ConfigError(f"alone_share must be above 0 and finite, got {self.alone_share}")


@dataclass
class Usual:
    """A moving average of seconds; None before the first."""

    seconds: float | None = None

    def add(self, sample: float) -> None:
        if self.seconds is None:
            self.seconds = sample
        else:  # One stall must not make long waits usual.
            self.seconds += 0.1 * (min(sample, 2 * self.seconds) - self.seconds)


@dataclass
class Pace:
    """What is usual on this node, and so how long to wait."""

    limits: GatherLimits
    num_micro_batches: int
    last_layer: int | None = None  # of a step; None until somebody began a second one
    service: Usual = field(default_factory=Usual)
    round_trip: Usual = field(default_factory=Usual)  # from a batch to the next layer's messages
    step: Usual = field(default_factory=Usual)
    alone_from: float = 0.0  # when slow attention nodes may have a batch of their own again

    def layer_wait(self) -> float:
        return self.limits.layer.seconds(self._layer_seconds())

    def _layer_seconds(self) -> float | None:
        """About m T_f; a round trip without queues is T_a + T_e + 2 T_c, so about 2 T_f."""
        if self.round_trip.seconds is not None:
            return self.round_trip.seconds * self.num_micro_batches / 2
        if self.service.seconds is not None:
            return self.service.seconds * self.num_micro_batches
        return None

    def step_wait(self) -> float:
        return self.limits.step.seconds(self.step.seconds)

    def step_ended_at(self, layer: int) -> None:
        self.last_layer = max(layer, self.last_layer or layer)

    def served_aside(self, started: float, ended: float, part: float) -> None:
        """`part` of the attention nodes are slow, and entitled to about as much of the time."""
        self.alone_from = started + (ended - started) / min(1.0, self.limits.alone_share * part)
