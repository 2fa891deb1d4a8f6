"""Answers of the addresses for whoever runs the server."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # before 3.12 pydantic takes only this one


class State(TypedDict):
    status: Literal["ok"]


class HealthState(TypedDict):
    """reason and seconds: of what is degraded."""

    status: Literal["ok", "degraded"]
    reason: NotRequired[str]
    seconds: NotRequired[float]


class Load(TypedDict):
    server_load: int


class Version(TypedDict):
    version: str


class NodeDocument(TypedDict):
    name: str
    role: str
    up: bool
    last_heard_seconds: float
    idle_ratio: float


class ServerInfo(TypedDict):
    """api_server: the number of the one that answers."""

    version: str
    api_server: int
    nodes: list[NodeDocument]
    versions: dict[str, str]


class NodeReport(TypedDict):
    """host: where nodes are on several. roads: of an attention node, by which it reaches which
    expert nodes. reason and lost_seconds: of one that is lost."""

    name: str
    role: Literal["attention", "expert"]
    node: int
    state: Literal["serving", "lost", "hung", "apart"]
    incarnation: int
    restarts: int
    ranks: int
    heartbeat_seconds: float | None
    host: NotRequired[str]
    roads: NotRequired[dict[str, list[int]]]
    reason: NotRequired[str]
    lost_seconds: NotRequired[float]


class Nodes(TypedDict):
    state: str
    reason: str | None
    epoch: int
    nodes: list[NodeReport]


Counters = dict[str, dict[str, Any]]


class Trace(TypedDict):
    traceEvents: list[dict[str, Any]]


Live = dict[str, Any]
"""For the page at /, and free to change with it."""


class Changed(TypedDict):
    """The nodes that serve now."""

    attention: list[int]
    experts: list[int]
    seconds: float


class WeightsUpdated(TypedDict):
    """SGLang's."""

    success: bool
    message: str
    num_paused_requests: int


class GroupChanged(TypedDict):
    """SGLang's."""

    success: bool
    message: str


class Told(TypedDict):
    """vLLM's."""

    message: str


class NewWeights(TypedDict):
    """vLLM's, and how they are called."""

    message: str
    weight_version: str


class WorldSize(TypedDict):
    """vLLM's."""

    world_size: int


class PauseChanged(TypedDict):
    """SGLang's."""

    message: str
    status: str


class PauseState(TypedDict):
    """vLLM's."""

    status: str


class IsPaused(TypedDict):
    is_paused: bool


class WeightVersion(TypedDict):
    weight_version: str
