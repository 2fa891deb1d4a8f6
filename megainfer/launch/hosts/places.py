"""On which host each node of an instance is, where agents have joined several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megainfer.errors import ConfigError
from megainfer.launch.machine import Machine
from megainfer.messages.message import Role

_WISH = re.compile(r"(attention|expert)[.-](\d{1,4})=(.+)")


@dataclass(frozen=True, slots=True)
class Host:
    """One that an agent has joined. name: unlike any other's. address: at which its nodes listen
    for each other."""

    name: str
    address: str
    machine: Machine


@dataclass(frozen=True, slots=True)
class Places:
    """By a node's index, the name of its host. hosts: all, in the order in which they joined."""

    attention: tuple[str, ...]
    experts: tuple[str, ...]
    hosts: tuple[str, ...]

    def of(self, role: Role, node: int) -> str:
        """One that joins later has the host of the node that its number comes back to."""
        own = self.attention if role is Role.ATTENTION else self.experts
        return own[node] if node < len(own) else self.hosts[node % len(self.hosts)]

    def on(self, host: str) -> list[tuple[Role, int]]:
        """The nodes to begin with of a host, attention nodes first."""
        attention = [(Role.ATTENTION, n) for n, name in enumerate(self.attention) if name == host]
        return attention + [(Role.EXPERT, n) for n, name in enumerate(self.experts) if name == host]


def parse_place(text: str) -> tuple[tuple[Role, int], str]:
    """A node and the name of its host. Raises ConfigError.

    >>> parse_place("attention.0=left")
    ((<Role.ATTENTION: 'attention'>, 0), 'left')
    """
    match = _WISH.fullmatch(text)
    if match is None:
        raise ConfigError(f"--place must be such as attention.0=HOST, not {text!r}")
    return (Role(match[1]), int(match[2])), match[3]


def place_nodes(
    attention: int, experts: int, hosts: Sequence[Host], wishes: Mapping[tuple[Role, int], str]
) -> Places:
    """As wished; each other node goes where it has the most cores, and among those the most memory,
    as nodes on a host share both evenly; attention nodes first.

    Raises ConfigError for wishes of nodes or hosts that aren't there.
    """
    nodes = [(Role.ATTENTION, n) for n in range(attention)]
    nodes += [(Role.EXPERT, n) for n in range(experts)]
    _check(wishes, nodes, hosts)
    places = dict(wishes)
    for node in nodes:
        if node not in places:
            places[node] = max(hosts, key=lambda host: _room(host, [*places.values()])).name
    return Places(
        attention=tuple(places[node] for node in nodes[:attention]),
        experts=tuple(places[node] for node in nodes[attention:]),
        hosts=tuple(host.name for host in hosts),
    )


def _room(host: Host, taken: Sequence[str]) -> tuple[float, float]:
    """Cores and bytes that one more node would have."""
    nodes = taken.count(host.name) + 1
    return len(host.machine.cores) / nodes, host.machine.available_memory / nodes


def _check(
    wishes: Mapping[tuple[Role, int], str],
    nodes: Sequence[tuple[Role, int]],
    hosts: Sequence[Host],
) -> None:
    names = [host.name for host in hosts]
    for (role, node), name in wishes.items():
        if (role, node) not in nodes:
            raise ConfigError(f"--place {role}.{node}={name}: there is no such node to begin with")
        if name not in names:
            known = ", ".join(names)
            raise ConfigError(f"--place {role}.{node}={name}: no such host; there are: {known}")
