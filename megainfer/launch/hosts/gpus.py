"""Which node of an instance on several hosts computes on which GPU of its host."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from megainfer.launch.hosts.places import Host, Places, Wishes, place_nodes
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
    """A GPU of its host for each node of these roles, in the order in which the host offers them,
    and for each that may join one that is left. places: of the nodes to begin with.

    Raises ConfigError where GPUs don't suffice or can't compute.
    """
    if not on_gpus:
        return ON_CPU
    _check_ranks(config, on_gpus)
    m, n = most_on_gpus(config, on_gpus)
    if m + n > sum(len(host.offered) for host in hosts):
        raise ConfigError(
            f"{wish_of_nodes(config)} {'need' if m + n > 1 else 'needs'} {m + n} GPUs, but hosts "
            f"offer {_supply(hosts)}; use fewer nodes, --gpus 0,0 of an agent for several on one, "
            "or --device cpu"
        )
    known = {(Role.ATTENTION, node): name for node, name in enumerate(places.attention)}
    known |= {(Role.EXPERT, node): name for node, name in enumerate(places.experts)}
    known = {node: name for node, name in known.items() if node[0] in on_gpus}
    wishes: Wishes = {(role, node): name for (role, node), name in known.items()}
    every = place_nodes(m, n, hosts, wishes, on_gpus=on_gpus)  # those that may join, too
    free = {host.name: iter(host.offered) for host in hosts}
    gpus = {node: _taken(node, name, free[name]) for node, name in known.items()}
    return Devices(
        attention=_of_role(Role.ATTENTION, every.attention, gpus, free),
        experts=_of_role(Role.EXPERT, every.experts, gpus, free),
        spare=tuple(gpu for left in free.values() for gpu in left),
    )


def _check_ranks(config: EngineConfig, on_gpus: Sequence[Role]) -> None:
    for role, name, ranks in (
        (Role.ATTENTION, "attn", config.attn_tp),
        (Role.EXPERT, "ffn", config.ffn_tp),
    ):
        if role in on_gpus and ranks > 1:
            raise ConfigError(
                f"--{name}-tp {ranks}: nodes on GPUs of several hosts have one rank each; use "
                f"--{name}-tp 1 and more nodes, or --{name}-device cpu"
            )


def gpu_for(
    plan: Plan, devices: Devices, node: tuple[Role, int], offered: Iterable[NumberedGpu]
) -> NumberedGpu | None:
    """One to which a node can be moved: that no node has, or may have, and that has room for it.
    devices: of all nodes by now. offered: by hosts that are there, as often as they do."""
    left = Counter(gpu.place for gpu in chain(*devices.attention, *devices.experts))
    for gpu in offered:
        left[gpu.place] -= 1
        if left[gpu.place] < 0 and _has_room(plan, devices, node, gpu):
            return gpu
    return None


def offered_anew(plan: Plan, devices: Devices, host: Host) -> Devices:
    """As it is when this host has joined again, maybe with other GPUs: each of its nodes keeps the
    one that it has, or gets another that nobody has and that has room, of the same number where
    that is one. Else its own isn't there. devices: of all nodes before that."""
    left = [gpu for gpu in host.offered if not unfitness(gpu)]
    without = []
    for role, of_nodes in ((Role.ATTENTION, devices.attention), (Role.EXPERT, devices.experts)):
        for node, (gpu, *_) in enumerate(of_nodes):  # one rank each
            if gpu.host != host.name:
                continue
            own = next((other for other in left if other.place == gpu.place), None)
            if own is None:
                own = replace(gpu, there=False)
                without.append((role, node))
            else:
                left.remove(own)
            devices = devices.moved(role, node, own)
    for same in (True, False):  # numbers first, for all
        for role, node in without:
            own = devices.of(role, node)
            assert own is not None
            for other in left if not own.there else []:
                if same and other.number != own.number:
                    continue
                if _has_room(plan, devices, (role, node), other):
                    left.remove(other)
                    devices = devices.moved(role, node, other)
                    break
    others = [gpu for gpu in devices.spare if gpu.host != host.name]
    return devices.with_spare([*others, *left])


def _has_room(plan: Plan, devices: Devices, node: tuple[Role, int], gpu: NumberedGpu) -> bool:
    """Beside those that are there."""
    if unfitness(gpu):
        return False
    role, index = node
    if role is Role.EXPERT and index >= plan.num_expert:  # one that joined counts as the largest
        index = max(range(plan.num_expert), key=plan.placement.num_slots)
    there = replace(plan, devices=devices.moved(role, index, gpu))
    ledger = there.attention_ledger if role is Role.ATTENTION else there.expert_ledger
    others = replace(plan, devices=devices).gpu_ledgers().values()
    taken = sum(own.total for place, own in others if place.place == gpu.place)
    return taken + ledger(index).total <= gpu.gpu.free_memory


def _of_role(
    role: Role,
    places: Sequence[str],
    gpus: Mapping[tuple[Role, int], NumberedGpu],
    free: Mapping[str, Iterator[NumberedGpu]],
) -> tuple[NodeGpus, ...]:
    """Of all nodes of a role that there may be."""
    return tuple(
        (gpus.get((role, node)) or _taken((role, node), name, free[name]),)
        for node, name in enumerate(places)
    )


def _taken(node: tuple[Role, int], host: str, free: Iterator[NumberedGpu]) -> NumberedGpu:
    """The next that is free. Raises ConfigError."""
    role, index = node
    gpu = next(free, None)
    if gpu is None:
        raise ConfigError(
            f"host {host} has no GPU left for {role} node {index}; place fewer there (--place), or "
            "name one of its GPUs twice by --gpus of its agent"
        )
    return fit_to_compute(gpu)


def _supply(hosts: Sequence[Host]) -> str:
    """Such as "5 (left 4, right 1)"."""
    each = ", ".join(f"{host.name} {len(host.offered)}" for host in hosts)
    return f"{sum(len(host.offered) for host in hosts)} ({each})"
