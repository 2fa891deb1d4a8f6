"""What an attention node tells the supervisor of its connections to expert nodes."""

from collections.abc import Callable
from typing import Any, cast

from megainfer.attention_node.peers import Peers
from megainfer.m2n.roads import Road
from megainfer.messages.from_child import LinkLost
from megainfer.messages.to_child import Meet


class Port:
    """Whose peers are lost when a test says so."""

    def __init__(self) -> None:
        self.lost: frozenset[int] = frozenset()

    def lost_peers(self) -> frozenset[int]:
        return self.lost

    def meet(
        self,
        expert: int,
        incarnation: int,
        seconds: float,
        met: Callable[[], None],
        address: tuple[str, int] | None,
    ) -> None:
        """Nobody is met in these tests."""


class Nobody:
    def send(self, message: Any) -> None: ...


def peers_on(road: str, port: Port) -> Peers:
    """Stand-ins have of a link and a port what peers ask of them, and no more."""
    return Peers(cast(Any, Nobody()), cast(Any, port), Road(road, "token"))


def test_a_connection_that_ends_is_told_once_though_epochs_begin_without_it() -> None:
    port = Port()
    peers = peers_on("mixed", port)
    peers.meet(Meet(0, 0))
    peers.meet(Meet(1, 3))
    peers.enter()
    port.lost = frozenset({1})
    assert peers.news() == [LinkLost(1, 3)]
    peers.enter()  # without it
    assert peers.news() == ()
    port.lost = frozenset()  # it was met again
    peers.meet(Meet(1, 3))
    peers.enter()
    assert peers.news() == ()
    port.lost = frozenset({1})
    assert list(peers.news()) == [LinkLost(1, 3)]


def test_a_connection_that_ends_just_before_an_epoch_is_told_in_it() -> None:
    port = Port()
    peers = peers_on("mixed", port)
    peers.meet(Meet(0, 0))
    peers.enter()
    port.lost = frozenset({0})
    peers.enter()
    assert list(peers.news()) == [LinkLost(0, 0)]


def test_roads_are_told_of_who_is_there() -> None:
    peers = peers_on("mixed", Port())
    peers.meet(Meet(1, 0, ("10.0.0.2", 7301)))
    peers.meet(Meet(0, 0))
    peers.meet(Meet(2, 0, ("10.0.0.3", 7301)))
    assert peers.roads() == {}
    peers.enter()
    assert peers.roads() == {"shm": [0], "dist": [1, 2]}
    alone = peers_on("dist", Port())
    alone.meet(Meet(0, 0))
    alone.enter()
    assert alone.roads() == {"dist": [0]}
