"""How often a node may die whose host comes and goes."""

from types import SimpleNamespace
from typing import Any

import pytest

from megainfer.errors import NodeDied
from megainfer.messages.message import Role
from megainfer.supervise.deaths import FIRST_DEATHS, Deaths
from megainfer.supervise.restarts import MOST_RESTARTS, Restarts


class Instance:
    """What `Deaths` asks of an instance; it has never served at first."""

    def __init__(self, host_is_there: bool) -> None:
        self.host_is_there = host_is_there
        self.serves = SimpleNamespace(started=False, measuring=False)
        self.serves.can_do_without = lambda node: False
        self.serves.died = lambda node: ()
        self.started_again: list[float] = []
        staffing: Any = SimpleNamespace(
            ended=lambda child: True,
            can_start=lambda node: self.host_is_there,
            postpone=lambda node, seconds: self.started_again.append(seconds),
        )
        front_ends: Any = SimpleNamespace(lost=lambda child, cause: None)
        assembly: Any = self.serves
        family: Any = None  # nobody ends for another's death
        self.deaths = Deaths(family, assembly, staffing, front_ends, Restarts(), lambda node: False)


def died() -> Any:
    def receive(timeout: float) -> None:
        raise NodeDied("it is gone")

    child = SimpleNamespace(
        role=Role.EXPERT,
        node=1,
        name="expert node 1",
        pid=1,
        link=SimpleNamespace(receive=receive),
        death=lambda: "host right has been silent for 5.1 s",
        forget=lambda: None,
        failed_by_itself=False,
    )
    child.ranks = (child,)
    return child


def test_a_host_that_comes_and_goes_ends_no_instance() -> None:
    flapping = Instance(host_is_there=False)
    for _ in range(MOST_RESTARTS + 2):
        flapping.deaths.mourn(died())
    flapping.host_is_there, flapping.serves.started = True, True
    flapping.deaths.mourn(died())
    assert flapping.started_again == [0.0] * (MOST_RESTARTS + 3)


def test_a_node_that_dies_where_its_host_is_there_has_so_many_starts() -> None:
    instance = Instance(host_is_there=True)
    for _ in range(FIRST_DEATHS):
        instance.deaths.mourn(died())
    with pytest.raises(NodeDied, match=f"it was started again {FIRST_DEATHS} times"):
        instance.deaths.mourn(died())
