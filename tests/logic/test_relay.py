"""Who is asked for counters and spans, and when the owner's answer is whole."""

from typing import Any

from megainfer.messages.from_child import Stats
from megainfer.messages.to_child import GetSpans, GetStats
from megainfer.supervise.relay import Relay


class Listener:
    """A node, or an owner: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def offer(self, message: Any, timeout: float = 0.0) -> bool:
        self.told.append(message)
        return True

    send = offer


class Family:
    def __init__(self, *nodes: Listener) -> None:
        self.nodes = nodes


def relay(ready: list[Any], family: Family, owner: Listener | None = None) -> Relay:
    return Relay(family, owner, lambda child: child in ready)  # type: ignore[arg-type]


def test_one_that_still_starts_is_asked_nothing() -> None:
    ready, starting = Listener(), Listener()
    asks = relay([ready], Family(ready, starting))
    asks.ask(GetSpans(1))
    asks.ask(GetStats(2))
    assert (ready.told, starting.told) == ([GetSpans(1), GetStats(2)], [])


def test_the_owner_hears_of_all_who_were_asked() -> None:
    one, other, starting, owner = Listener(), Listener(), Listener(), Listener()
    asks = relay([one, other], Family(one, other, starting), owner)
    asks.ask(GetStats(7))
    asks.tell(Stats(7, {"attention node 0": {"steps": 1}}))
    assert owner.told == []
    asks.tell(Stats(7, {"expert node 0": {"rows": 2}}))
    assert owner.told == [
        Stats(7, {"attention node 0": {"steps": 1}, "expert node 0": {"rows": 2}})
    ]
