"""Answers of the addresses for whoever runs the server."""

from typing import Any, Literal

from typing_extensions import TypedDict  # before 3.12 pydantic takes only this one


class State(TypedDict):
    status: Literal["ok"]


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
    version: str
    nodes: list[NodeDocument]
    versions: dict[str, str]


Counters = dict[str, dict[str, Any]]


class Trace(TypedDict):
    traceEvents: list[dict[str, Any]]


Live = dict[str, Any]
"""For the page at /, and free to change with it."""
