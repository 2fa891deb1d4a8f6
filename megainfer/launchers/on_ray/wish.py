"""What is wanted of a Ray cluster, as the supervisor tells the driver's process."""

from typing import Literal

import msgspec

Strategy = Literal["STRICT_SPREAD", "SPREAD", "PACK", "STRICT_PACK"]


class RayWish(msgspec.Struct, frozen=True):
    """parent: the supervisor's process id. address: of the cluster, as `ray.init` takes it. agents:
    how many. resources: of each, by Ray's names (CPU, GPU, memory in bytes, or the cluster's own).
    strategy: how their bundles are placed. seconds: how long to wait for room. arguments: of each
    `megainfer agent`, but for what only its node knows."""

    parent: int
    address: str
    agents: int
    resources: dict[str, float]
    strategy: Strategy
    seconds: float
    arguments: list[str]


class RayStart(msgspec.Struct, frozen=True):
    """What is known once the supervisor listens. join: where. token: None where each node has it in
    a file."""

    join: str
    token: str | None
