"""Which node of an instance on several hosts computes on which GPU of its host."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

from megainfer.config import EngineConfig
from megainfer.errors import ConfigError
from megainfer.launch.devices import (
    ON_CPU,
    Devices,
    NodeGpus,
    NumberedGpu,
    fit_to_compute,
    most_on_gpus,
    roles_on_gpus,
    unfitness,
    wish_of_nodes,
)
from megainfer.launch.hosts.places import Host, Node, Places, Wishes, place_nodes
from megainfer.launch.plan import Plan
from megainfer.messages.message import Role

logger = logging.getLogger(__name__)


def roles_on_hosts(config: EngineConfig, hosts: Sequence[Host]) -> tuple[Role, ...]:
    """Which roles compute on GPUs, of which some hosts may have none; says of which hosts they
    can't be used. Raises ConfigError as `devices.roles_on_gpus`."""
    problems = {
        host.name: host.machine.gpu_problem
        for host in hosts
        if host.machine.gpus and host.machine.gpu_problem
    }
    if config.device == "auto":
        for name, problem in problems.items():
            logger.warning("the GPUs of host %s can't be used: %s", name, problem)
    usable = any(host.offered for host in hosts)
    why = "; ".join(f"{host.name}: {host.machine.gpu_problem or 'there is none'}" for host in hosts)
    return roles_on_gpus(config, usable, why)


def choose_on_hosts(
    config: EngineConfig, places: Places, hosts: Sequence[Host], on_gpus: Sequence[Role]
) -> Devices:
    """A GPU of its host for each rank of the nodes of these roles, in the order in which the host
    offers them, and for nodes that may join such as are left. No two ranks of a node have the same
    one. places: of the nodes to begin with.

    Raises ConfigError where GPUs don't suffice or can't compute.
    """
    if not on_gpus:
        return ON_CPU
    _check_together(places, on_gpus)
    ranks = {Role.ATTENTION: config.attn_tp, Role.EXPERT: config.ffn_tp}
    m, n = most_on_gpus(config, on_gpus)
    processes = m * config.attn_tp + n * config.ffn_tp
    if processes > sum(len(host.offered) for host in hosts):
        remedy = "nodes" if max(ranks.values()) == 1 else "nodes or ranks"
        raise ConfigError(
            f"{wish_of_nodes(config)} {'need' if processes > 1 else 'needs'} {processes} GPUs, but "
            f"hosts offer {_supply(hosts)}; use fewer {remedy}, --gpus 0,0 of an agent for several "
            "nodes on one, or --device cpu"
        )
    known = {node: name for node, name in _by_node(places).items() if node[0] in on_gpus}
    wishes: Wishes = {(role, node): name for (role, node), name in known.items()}
    every = place_nodes(m, n, hosts, wishes, ranks, on_gpus)  # those that may join, too
    free = {host.name: [*host.offered] for host in hosts}
    gpus = {  # of those to begin with first
        node: _taken(node, name, free[name], ranks[node[0]])
        for node, name in (known | _by_node(every)).items()
    }
    return Devices(
        attention=tuple(gpus[Role.ATTENTION, node] for node in range(m)),
        experts=tuple(gpus[Role.EXPERT, node] for node in range(n)),
        spare=tuple(chain(*free.values())),
    )


def _by_node(places: Places) -> dict[Node, str]:
    """The name of each one's host, attention nodes first."""
    names = {(Role.ATTENTION, node): name for node, name in enumerate(places.attention)}
    return names | {(Role.EXPERT, node): name for node, name in enumerate(places.experts)}


def _check_together(places: Places, on_gpus: Sequence[Role]) -> None:
    """Raises ConfigError where ranks of a node on GPUs were wished to be on several hosts."""
    for parted in places.elsewhere:
        if parted.role in on_gpus:
            node, host = f"{parted.role}.{parted.node}", parted.host
            device = "--attn-device" if parted.role is Role.ATTENTION else "--ffn-device"
            raise ConfigError(
                f"--place {node}.{parted.rank}={host}: the ranks of a node on GPUs are on one "
                f"host; use --place {node}={host} for all of them, or {device} cpu"
            )


def gpus_for(
    plan: Plan, devices: Devices, node: Node, offered: Iterable[NumberedGpu]
) -> NodeGpus | None:
    """To which a node can be moved: of one host, for each rank one that no node has, or may have,
    and that has room for it. devices: of all nodes by now. offered: by hosts that are there, as
    often as they do."""
    left = Counter(gpu.place for gpu in chain(*devices.attention, *devices.experts))
    found: dict[str, list[NumberedGpu]] = {}  # by hosts
    for gpu in offered:
        left[gpu.place] -= 1
        if left[gpu.place] >= 0:
            continue
        own = found.setdefault(gpu.host, [])
        if not _is_among(gpu, own) and _has_room(plan, devices, node, len(own), gpu):
            own.append(gpu)
        if len(own) == plan.ranks(node[0]):
            return tuple(own)
    return None


def offered_anew(plan: Plan, devices: Devices, host: Host) -> Devices:
    """As it is when this host has joined again, maybe with other GPUs: each rank of its nodes keeps
    the one that it has, or gets another that nobody has and that has room, of the same number where
    that is one. Else its own isn't there. devices: of all nodes before that."""
    left = [gpu for gpu in host.offered if not unfitness(gpu)]
    without = []
    for role, of_nodes in ((Role.ATTENTION, devices.attention), (Role.EXPERT, devices.experts)):
        for node, gpus in enumerate(of_nodes):
            for rank, gpu in enumerate(gpus):
                if gpu.host != host.name:
                    continue
                own = next((other for other in left if other.place == gpu.place), None)
                if own is None:
                    own = replace(gpu, there=False)
                    without.append(((role, node), rank))
                else:
                    left.remove(own)
                devices = _with_rank(devices, (role, node), rank, own)
    for same in (True, False):  # numbers first, for all
        for owner, rank in without:
            found = _replacement(plan, devices, owner, rank, left, same=same)
            if found is not None:
                left.remove(found)
                devices = _with_rank(devices, owner, rank, found)
    others = [gpu for gpu in devices.spare if gpu.host != host.name]
    return devices.with_spare([*others, *left])


def _replacement(
    plan: Plan,
    devices: Devices,
    node: Node,
    rank: int,
    left: Sequence[NumberedGpu],
    *,
    same: bool,
) -> NumberedGpu | None:
    """Of what is left, one for a rank whose own isn't there. same: of its number only."""
    gpus = devices.of_ranks(*node)
    if gpus[rank].there:
        return None
    fitting = (
        gpu
        for gpu in left
        if not (same and gpu.number != gpus[rank].number)
        and not _is_among(gpu, gpus)
        and _has_room(plan, devices, node, rank, gpu)
    )
    return next(fitting, None)


def _with_rank(devices: Devices, node: Node, rank: int, gpu: NumberedGpu) -> Devices:
    """The same with this GPU for one rank of a node."""
    own = [*devices.of_ranks(*node)]
    own[rank] = gpu
    return devices.moved(*node, tuple(own))


def _is_among(gpu: NumberedGpu, gpus: Iterable[NumberedGpu]) -> bool:
    return any(other.place == gpu.place for other in gpus)


def _has_room(plan: Plan, devices: Devices, node: Node, rank: int, gpu: NumberedGpu) -> bool:
    """For a rank of a node, beside those that are there."""
    if unfitness(gpu):
        return False
    role, index = node
    if role is Role.EXPERT and index >= plan.num_expert:  # one that joined counts as the largest
        index = max(range(plan.num_expert), key=plan.placement.num_slots)
    there = replace(plan, devices=_with_rank(devices, (role, index), rank, gpu))
    ledger = there.attention_ledger if role is Role.ATTENTION else there.expert_ledger
    others = replace(plan, devices=devices).gpu_ledgers().values()
    taken = sum(own.total for place, own in others if place.place == gpu.place)
    return taken + ledger(index, rank).total <= gpu.gpu.free_memory


def _taken(node: Node, host: str, free: list[NumberedGpu], ranks: int) -> NodeGpus:
    """The next that are free, from where they are taken, one for each rank. Raises ConfigError."""
    role, index = node
    own = [*dict.fromkeys(free)][:ranks]  # no two the same
    if len(own) < ranks:
        option = "--attn-tp" if role is Role.ATTENTION else "--ffn-tp"
        raise ConfigError(
            f"host {host} has no GPU left for {role} node {index}; place fewer there (--place), or "
            "name one of its GPUs twice by --gpus of its agent"
            if ranks == 1
            else f"host {host} has {len(own) or 'no'} GPU{'s' * (len(own) != 1)} left for the "
            f"{ranks} ranks of {role} node {index}, which need one each; place fewer there "
            f"(--place), or use a smaller {option}"
        )
    for gpu in own:
        free.remove(gpu)
    return tuple(map(fit_to_compute, own))


def _supply(hosts: Sequence[Host]) -> str:
    """Such as "5 (left 4, right 1)"."""
    each = ", ".join(f"{host.name} {len(host.offered)}" for host in hosts)
    return f"{sum(len(host.offered) for host in hosts)} ({each})"
