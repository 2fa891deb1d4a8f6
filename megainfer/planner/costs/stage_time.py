"""How long a stage takes, by what binds its kernels."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Time:
    """Seconds, each kernel's under what binds it.

    weights: reading weights. cache: reading and writing KV and states. arithmetic: FLOPs. copied:
    moving rows within memory. network: bytes between devices. fixed: launches, latencies, and the
    host's own work.
    """

    weights: float = 0.0
    cache: float = 0.0
    arithmetic: float = 0.0
    copied: float = 0.0
    network: float = 0.0
    fixed: float = 0.0

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.arithmetic + self.copied + self.network + self.fixed

    @property
    def bound(self) -> str:
        """The name of the largest part.

        >>> Time(weights=2.0, network=1.0).bound
        'weights'
        """
        return max(self.parts, key=lambda part: part[1])[0]

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """(name, seconds) of each."""
        return tuple((field.name, getattr(self, field.name)) for field in fields(self))

    def __add__(self, other: "Time") -> "Time":
        return Time(
            self.weights + other.weights,
            self.cache + other.cache,
            self.arithmetic + other.arithmetic,
            self.copied + other.copied,
            self.network + other.network,
            self.fixed + other.fixed,
        )

    def __mul__(self, factor: float) -> "Time":
        return Time(
            self.weights * factor,
            self.cache * factor,
            self.arithmetic * factor,
            self.copied * factor,
            self.network * factor,
            self.fixed * factor,
        )
