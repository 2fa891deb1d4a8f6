"""Plans for several hosts with GPUs, and who says which hosts are there."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from megainfer.config import EngineConfig
from megainfer.hosts.reception import Reception
from megainfer.hosts.residences import Removals, Residences
from megainfer.launch.hosts.places import Host
from megainfer.launch.hosts.spread import Site, make_spread_plan
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role
from tests.support.gpus import HOST, h200, machine_of

WITHOUT = Host("cpus", "10.0.0.4", HOST)


def host(name: str, *numbers: int, gpus: tuple[int, ...] | None = None, **of_gpus: Any) -> Host:
    """numbers: of its GPUs, unlike any other host's. gpus: that it offers."""
    own = [replace(h200(number), **of_gpus) for number in numbers]
    return Host(name, "10.0.0.2", machine_of(*own), gpus)


def plan_of(model: Path, *hosts: Host, place: Mapping[Any, str] | None = None, **wish: Any) -> Plan:
    """place: of nodes, or of ranks."""
    return make_spread_plan(EngineConfig(**wish), model, Site(hosts, place or {}))


def moved(plan: Plan, residences: Residences, node: tuple[Role, int], *hosts: Host) -> list[Any]:
    """To where a node goes, once its host has stayed away. hosts: that are there."""
    wanted = [(Role.ATTENTION, 0), *((Role.EXPERT, index) for index in range(plan.num_expert))]
    return list(Removals(plan, residences).moved([node], wanted, hosts))


class FakeReception(Reception):
    """Of hosts that are there, as the last of each name joined."""

    def __init__(self, *hosts: Host) -> None:
        self.there, self.patience, self.move_after = [*hosts], 300.0, inf

    def hosts(self) -> list[Host]:
        return self.there

    def is_there(self, name: str) -> bool:
        return name in [host.name for host in self.there]

    def check_back(self, name: str) -> None:
        assert self.is_there(name)

    def stays_away(self, name: str) -> bool:
        return not self.is_there(name)
