"""On which host each node of an instance is, where agents have joined several."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from megainfer.errors import ConfigError
from megainfer.launch.devices import NumberedGpu
from megainfer.launch.machine import Machine
from megainfer.messages.message import Role

_WISH = re.compile(r"(attention|expert)[.-](\d{1,4})(?:\.(\d{1,2}))?=(.+)")

Node = tuple[Role, int]
Wishes = Mapping[tuple[Role, int] | tuple[Role, int, int], str]
"""Of nodes, or of single ranks of them, the name of a host. A node's own is that of its first rank,
and of those others for which there is none."""


MOST_GPUS = 256
"""Of a host, each counted as often as nodes may have it."""


@dataclass(frozen=True, slots=True)
class Host:
    """One that an agent has joined. name: unlike any other's. address: at which its nodes listen
    for each other. gpus: by their numbers, those that nodes may have, in this order, one as often
    as it may have nodes; None: each of the machine's once."""

    name: str
    address: str
    machine: Machine
    gpus: tuple[int, ...] | None = None

    @property
    def offered(self) -> tuple[NumberedGpu, ...]:
        """A GPU for each node that may be on one; () where none can be used."""
        own = self.machine.gpus
        if self.machine.gpu_problem:
            return ()
        numbers = range(len(own)) if self.gpus is None else self.gpus
        return tuple(NumberedGpu(number, own[number], self.name) for number in numbers)

    def describe(self) -> str:
        """What there is, such as `4 cores, 2 GPUs`."""
        count = len({gpu.place for gpu in self.offered})
        gpus = f", {count} GPU{'s' * (count > 1)}" if count else ""
        return f"{len(self.machine.cores)} cores{gpus}"


def check_gpus(host: Host) -> None:
    """Raises ConfigError where it offers what it hasn't, or more than nodes could use."""
    there = len(host.machine.gpus)
    for number in host.gpus or ():
        if not 0 <= number < there:
            raise ConfigError(f"--gpus names GPU {number}, but there are {there}, from 0 on")
    if max(there, len(host.gpus or ())) > MOST_GPUS:
        raise ConfigError(f"it offers more than {MOST_GPUS} GPUs")


class Part(NamedTuple):
    """The ranks of a node that are on one host. leads: whether the first is among them, who speaks
    for the node."""

    role: Role
    node: int
    ranks: tuple[int, ...]

    @property
    def leads(self) -> bool:
        return 0 in self.ranks


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A rank that is on another host than the first of its node."""

    role: Role
    node: int
    rank: int
    host: str


@dataclass(frozen=True, slots=True)
class Places:
    """By a node's index, the name of its host. hosts: all, in the order in which they joined.
    elsewhere: which ranks aren't on their node's. hands_over: whether expert nodes give each other
    experts."""

    attention: tuple[str, ...]
    experts: tuple[str, ...]
    hosts: tuple[str, ...]
    elsewhere: tuple[Elsewhere, ...] = ()
    hands_over: bool = False

    def of(self, role: Role, node: int) -> str:
        """Where its first rank is. One that joins later has the host of the node that its number
        comes back to."""
        own = self.attention if role is Role.ATTENTION else self.experts
        return own[node] if node < len(own) else self.hosts[node % len(self.hosts)]

    def of_ranks(self, role: Role, node: int, ranks: int) -> tuple[str, ...]:
        """Of so many, where each is."""
        others = {e.rank: e.host for e in self.elsewhere if (e.role, e.node) == (role, node)}
        return tuple(others.get(rank, self.of(role, node)) for rank in range(ranks))

    def name_of(self, role: Role, node: int) -> str:
        """Of its host, or hosts, in words: such as left, or left+right."""
        own = [e.host for e in self.elsewhere if (e.role, e.node) == (role, node)]
        return "+".join(dict.fromkeys([self.of(role, node), *own]))

    def on(self, host: str, ranks: Mapping[Role, int]) -> list[Part]:
        """What a host has of the nodes to begin with, attention nodes first. ranks: of each node of
        a role."""
        nodes = [(Role.ATTENTION, node) for node in range(len(self.attention))]
        nodes += [(Role.EXPERT, node) for node in range(len(self.experts))]
        parts = (part_on(host, node, self.of_ranks(*node, ranks[node[0]])) for node in nodes)
        return [part for part in parts if part.ranks]


def part_on(host: str, node: Node, hosts: Sequence[str]) -> Part:
    """hosts: of each rank."""
    return Part(*node, tuple(rank for rank, name in enumerate(hosts) if name == host))


def parse_place(text: str) -> tuple[tuple[Role, int] | tuple[Role, int, int], str]:
    """A node, or one rank of it, and the name of its host. Raises ConfigError.

    >>> parse_place("attention.0=left")
    ((<Role.ATTENTION: 'attention'>, 0), 'left')
    >>> parse_place("attention.0.1=right")
    ((<Role.ATTENTION: 'attention'>, 0, 1), 'right')
    """
    match = _WISH.fullmatch(text)
    if match is None:
        raise ConfigError(
            "--place must be such as attention.0=HOST, or attention.0.1=HOST for a rank, not "
            f"{text!r}"
        )
    role, node, host = Role(match[1]), int(match[2]), match[4]
    return ((role, node) if match[3] is None else (role, node, int(match[3]))), host


ONE_RANK: Mapping[Role, int] = {Role.ATTENTION: 1, Role.EXPERT: 1}


def place_nodes(
    attention: int,
    experts: int,
    hosts: Sequence[Host],
    wishes: Wishes,
    ranks: Mapping[Role, int] = ONE_RANK,
    on_gpus: Sequence[Role] = (),
) -> Places:
    """As wished; each other node goes where it has the most cores, and among those the most memory,
    as nodes on a host share both evenly; attention nodes first. Ranks stay together, unless wished,
    or where their host has fewer cores than these: then some go where cores are left. on_gpus:
    roles whose nodes go where GPUs are free for the most such nodes with all of their ranks, and
    among those where others would; those of more ranks first, and no rank parts for want of cores.

    Raises ConfigError for wishes of nodes, ranks or hosts that aren't there.
    """
    nodes = [(Role.ATTENTION, n) for n in range(attention)]
    nodes += [(Role.EXPERT, n) for n in range(experts)]
    _check(wishes, nodes, hosts, ranks)
    of_ranks = {key: host for key, host in wishes.items() if len(key) == 3}
    places = {(key[0], key[1]): host for key, host in of_ranks.items() if key[2] == 0}
    places |= {(key[0], key[1]): host for key, host in wishes.items() if len(key) == 2}
    gpus = {role: ranks[role] for role in on_gpus}  # of each node
    # Few GPUs are found more easily than many of one host.
    for node in sorted(nodes, key=lambda node: gpus.get(node[0], 1), reverse=True):
        if node not in places:
            places[node] = max(hosts, key=lambda host: _room(host, places, node[0], gpus)).name
    return Places(
        attention=tuple(places[node] for node in nodes[:attention]),
        experts=tuple(places[node] for node in nodes[attention:]),
        hosts=tuple(host.name for host in hosts),
        elsewhere=_elsewhere(places, hosts, of_ranks, ranks, on_gpus),
    )


def _elsewhere(
    places: Mapping[Node, str],
    hosts: Sequence[Host],
    wishes: Mapping[tuple[Role, int, int], str],
    ranks: Mapping[Role, int],
    on_gpus: Sequence[Role],
) -> tuple[Elsewhere, ...]:
    """The ranks that aren't with the first of their node, in the order of nodes."""
    cores = {host.name: len(host.machine.cores) for host in hosts}
    processes = Counter(
        wishes.get((*node, rank), own)
        for node, own in places.items()
        for rank in range(ranks[node[0]])
    )
    found = []
    for node, own in sorted(places.items(), key=lambda item: (item[0][0] is Role.EXPERT, item[0])):
        here = 1  # ranks, so far
        for rank in range(1, ranks[node[0]]):
            host = wishes.get((*node, rank), own)
            wished = (*node, rank) in wishes
            if not wished and node[0] not in on_gpus and here >= cores[own]:
                host = max(cores, key=lambda name: cores[name] - processes[name])
                host = host if cores[host] > processes[host] else own
                processes.update({own: -1, host: 1})
            here += host == own
            if host != own:
                found.append(Elsewhere(*node, rank, host))
    return tuple(found)


def _room(
    host: Host, places: Mapping[Node, str], role: Role, gpus: Mapping[Role, int]
) -> tuple[int, float, float]:
    """For how many more nodes of this role GPUs are free, where they are to have some; cores and
    bytes that it would have. gpus: that each node of a role is to have."""
    there = [other for (other, _), name in places.items() if name == host.name]
    free = 0
    if role in gpus:
        free = (len(host.offered) - sum(gpus.get(other, 0) for other in there)) // gpus[role]
    nodes = len(there) + 1
    return free, len(host.machine.cores) / nodes, host.machine.available_memory / nodes


def _check(
    wishes: Wishes, nodes: Sequence[Node], hosts: Sequence[Host], ranks: Mapping[Role, int]
) -> None:
    names = [host.name for host in hosts]
    for key, name in wishes.items():
        role, node = key[0], key[1]
        wish = f"--place {'.'.join(map(str, key))}={name}"
        if (role, node) not in nodes:
            raise ConfigError(f"{wish}: there is no such node to begin with")
        if len(key) == 3 and key[2] >= ranks[role]:
            option = "--attn-tp" if role is Role.ATTENTION else "--ffn-tp"
            raise ConfigError(f"{wish}: there is no such rank; {option} is {ranks[role]}")
        if len(key) == 3 and key[2] == 0 and wishes.get((role, node), name) != name:
            raise ConfigError(f"{wish}: its node is to be on {wishes[role, node]}; say one of both")
        if name not in names:
            known = ", ".join(names)
            raise ConfigError(f"{wish}: no such host; there are: {known}")
