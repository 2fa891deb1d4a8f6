"""How the nodes are, for whoever has to decide whether to send requests."""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    LOADING = "loading"  # not all nodes have been there yet; requests are refused
    HEALTHY = "healthy"
    DEGRADED = "degraded"  # a node lacks, and others do its work meanwhile
    RECOVERING = "recovering"  # requests are taken, and wait for what lacks
    FAILED = "failed"  # requests are refused: it took too long, or there is no coming back


@dataclass(frozen=True, slots=True)
class Condition:
    """text: what is the matter, in words for anybody; detail: with inner texts. seconds: for how
    long it has been so, where a node lacks."""

    phase: Phase
    text: str = ""
    detail: str = ""
    seconds: float | None = None

    @property
    def serves(self) -> bool:
        """Whether a request that is sent now is computed now."""
        return self.phase in (Phase.HEALTHY, Phase.DEGRADED)
