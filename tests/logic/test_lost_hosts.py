"""How often a node may die whose host comes and goes."""

from types import SimpleNamespace
from typing import Any

import pytest

from megainfer.errors import NodeDied
from megainfer.messages.message import Role
from megainfer.supervise.recovery import Recoveries
from megainfer.supervise.restarts import MOST_RESTARTS, Restarts
from megainfer.supervise.supervisor import Supervisor


def supervisor(host_is_there: bool) -> Any:
    """What `Supervisor._mourn` asks, of an instance that has never served."""
    return SimpleNamespace(
        _staffing=SimpleNamespace(
            ended=lambda child: True,
            can_start=lambda node: host_is_there,
            postpone=lambda node, seconds: None,
        ),
        _operations=SimpleNamespace(ended=lambda node: False),
        _assembly=SimpleNamespace(can_do_without=lambda node: False),
        _recoveries=Recoveries(),
        _restarts=Restarts(),
        _would_do_so_again=lambda child: False,
        _may_still_start=lambda node: False,
        _lose=lambda child, cause: None,
    )


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
    )
    child.ranks = (child,)
    return child


def test_a_host_that_comes_and_goes_ends_no_instance() -> None:
    flapping = supervisor(host_is_there=False)
    for _ in range(MOST_RESTARTS + 2):
        Supervisor._mourn(flapping, died())
    flapping._staffing.can_start = lambda node: True
    flapping._may_still_start = lambda node: True
    Supervisor._mourn(flapping, died())


def test_a_node_that_dies_where_its_host_is_there_has_so_many_starts() -> None:
    with pytest.raises(NodeDied, match="it was started again"):
        Supervisor._mourn(supervisor(host_is_there=True), died())
