"""One kind of GPU or CPU server, as a plan sees it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from megainfer.errors import ConfigError
from megainfer.planner.hardware.efficiency import Efficiency

Kind = Literal["gpu", "cpu"]
RATES = ("float32", "bfloat16", "fp8", "int8", "fp4")
"""What arithmetic has a rate of its own. float16 is as fast as bfloat16 wherever both are."""
ARITHMETIC = {
    **{name: name for name in RATES},
    "float16": "bfloat16",
    "fp8_channel": "fp8",
    "mxfp4": "fp4",
}
"""Dtype of weights -> the arithmetic made for it; others (int4) are widened to bfloat16 first."""


@dataclass(frozen=True, slots=True)
class Link:
    """How a device's bytes leave it."""

    bytes_per_second: float  # of one device, in one direction, both directions at once
    latency_seconds: float  # of a message without bytes, from one device's memory to the other's
    devices: int = 1  # that reach each other by it: the scale-up domain. 1 for NICs: it isn't used
    # Who waits for a message looks for it for so long before it sleeps, and must then be woken,
    # which is what a message takes more.
    awake_seconds: float = math.inf
    waking_seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.bytes_per_second < math.inf:
            raise ConfigError(
                f"a link's bytes_per_second is {self.bytes_per_second}, but must be more than 0"
            )
        if not 0 <= self.latency_seconds < math.inf:
            raise ConfigError(
                f"a link's latency_seconds is {self.latency_seconds}, but must be at least 0"
            )
        if not self.awake_seconds >= 0:
            raise ConfigError(
                f"a link's awake_seconds is {self.awake_seconds}, but must be at least 0"
            )
        if not 0 <= self.waking_seconds < math.inf:
            raise ConfigError(
                f"a link's waking_seconds is {self.waking_seconds}, but must be at least 0"
            )
        if self.devices < 1:
            raise ConfigError(f"a link joins {self.devices} devices, but must at least join 1")


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU, or one CPU server (or as much of one as a node has), and what it reaches.

    Rates are the hardware's peaks; `efficiency` says what of them is reached.
    """

    name: str
    kind: Kind
    memory_bytes: float
    memory_bytes_per_second: float
    flops: Mapping[str, float] = field(hash=False)  # of RATES -> dense FLOP/s (int8: operations/s)
    link: Link  # within a scale-up domain: NVLink, PCIe, Infinity Fabric, one server's memory
    nic: Link  # between domains
    watts: float  # of the device at its limit, without its server
    price: float  # relative, an L20 is 1
    efficiency: Efficiency
    sources: Mapping[str, str] = field(hash=False)  # field -> where its figure is from

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise self._fail("kind", self.kind, "must be gpu or cpu")
        for name in ("memory_bytes", "memory_bytes_per_second", "watts", "price"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise self._fail(name, value, "must be more than 0")
        if "bfloat16" not in self.flops:
            raise self._fail("flops", dict(self.flops), "must name bfloat16")
        for name, rate in self.flops.items():
            if name not in RATES:
                raise self._fail(
                    f"flops.{name}", rate, f"is no rate; these are: {', '.join(RATES)}"
                )
            if not 0 < rate < math.inf:
                raise self._fail(f"flops.{name}", rate, "must be more than 0")

    def rate(self, dtype: str) -> float:
        """FLOP/s at most of products whose weights have this dtype: those of the arithmetic made
        for it, or of bfloat16 where this device has none, or a slower one, and widens them first.
        float32 isn't narrowed where it has a rate."""
        widened = self.flops["bfloat16"]
        own = self.flops.get(ARITHMETIC.get(dtype, "bfloat16"), widened)
        return own if dtype == "float32" else max(own, widened)

    def _fail(self, what: str, value: object, problem: str) -> ConfigError:
        return ConfigError(f"device {self.name}: {what} is {value}, but {problem}")
