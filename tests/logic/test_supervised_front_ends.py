"""What an API server hears that comes later: in the order in which it happened."""

from types import SimpleNamespace
from typing import Any

from megainfer.messages.message import Message, Role
from megainfer.messages.to_child import Enter, NodeDown
from megainfer.supervise.front_ends import FrontEnds
from megainfer.topology import Membership, contiguous_placement

PLACEMENT = contiguous_placement(4, 2, [0], replicas=2)
FIRST = Membership(1, (0,), (0, 1), PLACEMENT)
WITHOUT = FIRST.without_expert(1)


class Server:
    """An API server that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Message] = []
        self.node, self.incarnation = 0, 1

    def send(self, message: Message) -> None:
        self.told.append(message)


def front_ends() -> FrontEnds:
    family: Any = SimpleNamespace(of=lambda role: [])
    return FrontEnds(family, None, lambda message: None)


def expert(incarnation: int = 0) -> Any:
    return SimpleNamespace(role=Role.EXPERT, node=1, incarnation=incarnation)


def heard_by_a_new_one(ends: FrontEnds) -> list[Message]:
    server: Any = Server()
    ends.forked(server)
    return [message for message in server.told if isinstance(message, Enter | NodeDown)]


def test_a_membership_comes_after_the_deaths_that_it_does_without() -> None:
    ends = front_ends()
    ends.enter(FIRST)
    ends.lost(expert(), "killed")
    ends.enter(WITHOUT)
    kinds = [type(message) for message in heard_by_a_new_one(ends)]
    assert kinds == [NodeDown, Enter]


def test_a_death_that_came_later_is_told_later() -> None:
    ends = front_ends()
    ends.enter(FIRST)
    ends.lost(expert(), "killed")
    kinds = [type(message) for message in heard_by_a_new_one(ends)]
    assert kinds == [Enter, NodeDown]
    ends.enter(WITHOUT)
    ends.lost(expert(1), "killed once more")
    assert [type(message) for message in heard_by_a_new_one(ends)] == [Enter, NodeDown]
    ends.back((Role.EXPERT, 1))
    assert [type(message) for message in heard_by_a_new_one(ends)] == [Enter]
