"""From a wish to a plan for several hosts, each of which has the nodes that agents start there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megainfer.config import EngineConfig, format_bytes
from megainfer.errors import ConfigError
from megainfer.launch.choices import numa_sockets, own_cores
from megainfer.launch.fit import experts_on_the_move, fitting_blocks, overhead_of
from megainfer.launch.hosts.places import Host, Places, place_nodes
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.memory import NODE_BYTES, Ledger, attention_node, expert_node, kv_block_bytes
from megainfer.messages.message import Role
from megainfer.topology import (
    CoreAssignment,
    have_own_cores,
    join_cores,
    share_cores,
)

NO_GPUS = "nodes of agents compute on the CPU; GPUs of several hosts aren't served yet"
_DEFAULT_ADDRESS = EngineConfig().m2n_host


@dataclass(frozen=True, slots=True)
class Site:
    """Several hosts. wishes: where the user wants a node to be, by its role and index."""

    hosts: tuple[Host, ...]
    wishes: Mapping[tuple[Role, int], str]


def make_spread_plan(config: EngineConfig, folder: Path, site: Site) -> Plan:
    """As `plan.make_plan`, for the nodes of an instance on these hosts. What the host of the API
    server takes is none of its affair."""
    _check(config)
    places = place_nodes(config.attn_gpus, config.ffn_gpus, site.hosts, site.wishes)
    plan = make_plan(config, folder, _together([host.machine for host in site.hosts]))
    cores = _cores(config, places, site.hosts)
    nodes = {host: iter(assigned) for host, assigned in cores.items()}
    spread = replace(
        plan,
        places=places,
        cores=tuple(next(nodes[host]) for host in (*places.attention, *places.experts)),
    )
    own = all(_have_own_cores(spread, host) for host in cores)
    spread = replace(spread, micro_batches=config.micro_batches or (None if own else 1))
    blocks = [_fitting_blocks(spread, host) for host in site.hosts]
    return replace(spread, num_blocks=min(fit for fit in blocks if fit is not None))


def _check(config: EngineConfig) -> None:
    refused = {
        "--colocated": config.colocated and "is one process, which needs no agents",
        "--m2n shm": config.m2n == "shm" and "is memory of one host; leave it out",
        "--m2n-host": config.m2n_host != _DEFAULT_ADDRESS
        and "is of one host; each agent's --host says where its nodes listen",
        "--pin-weights": config.pin_weights and "holds files of one host; leave it out",
    }
    for flag, reason in refused.items():
        if reason:
            raise ConfigError(f"{flag} {reason}: nodes are on the hosts of --agents")


def _together(machines: Sequence[Machine]) -> Machine:
    """What they have in all, as far as a single plan goes by it."""
    return Machine(
        cores=tuple(range(sum(len(machine.cores) for machine in machines))),
        memory=sum(machine.memory for machine in machines),
        available_memory=sum(machine.available_memory for machine in machines),
        bfloat16_arithmetic=all(machine.bfloat16_arithmetic for machine in machines),
        gpu_problem=NO_GPUS,
    )


def _cores(
    config: EngineConfig, places: Places, hosts: Sequence[Host]
) -> dict[str, list[CoreAssignment]]:
    """By host, those of its nodes, attention nodes first; ranks count as processes."""
    ranks_of = {Role.ATTENTION: config.attn_tp, Role.EXPERT: config.ffn_tp}
    found: dict[str, list[CoreAssignment]] = {}
    for host in hosts:
        ranks = [ranks_of[role] for role, _ in places.on(host.name)]
        cores, sockets = host.machine.cores, numa_sockets(config, host.machine)
        if config.cores == "shared" or not ranks:
            own = share_cores(len(ranks), cores)
        else:
            own = join_cores(own_cores(sum(ranks), cores, sockets), ranks)
        found[host.name] = [replace(each, near=bool(sockets)) for each in own]
    return found


def _have_own_cores(plan: Plan, host: str) -> bool:
    """Whether no two processes of a host share a core."""
    assert plan.places is not None
    return have_own_cores(
        tuple(
            plan.cores_of(role, node, rank)
            for role, node in plan.places.on(host)
            for rank in range(plan.ranks(role))
        )
    )


def _fitting_blocks(plan: Plan, host: Host) -> int | None:
    """Blocks of an attention node's cache that this host has room for; None where none is there.
    Raises ConfigError where the host has no room for its nodes."""
    assert plan.places is not None
    nodes = plan.places.on(host.name)
    if not nodes:
        return None
    attention = sum(role is Role.ATTENTION for role, _ in nodes)
    free = host.machine.available_memory - _beside_caches(plan, nodes).total
    if free <= 0:
        raise ConfigError(
            f"host {host.name} has {format_bytes(host.machine.available_memory)} of memory "
            f"available, {format_bytes(-free)} less than its {len(nodes)} nodes need; place fewer "
            "there (--place), or use --expert-dtype int8 or a smaller --max-num-batched-tokens"
        )
    if not attention:
        return None
    own = replace(plan.config, attn_gpus=attention)
    processes = sum(plan.ranks(role) for role, _ in nodes)
    others = overhead_of(own, processes, None, 0).ledger
    return fitting_blocks(own, plan.spec, plan.precision, plan.max_model_len, free, others)


def needs_of(plan: Plan, nodes: Sequence[tuple[Role, int]]) -> int:
    """Bytes that these nodes take of a host, with what comes with their processes. One that joined
    while it served counts as the largest of its role."""
    largest = max(range(plan.num_expert), key=lambda node: plan.expert_ledger(node).total)
    known = [
        (role, node if role is Role.ATTENTION or node < plan.num_expert else largest)
        for role, node in nodes
    ]
    block = kv_block_bytes(plan.spec, plan.precision, plan.config.attn_tp)
    caches = plan.num_blocks * block + plan.num_states * plan.spec.state_bytes
    attention = sum(role is Role.ATTENTION for role, _ in nodes)
    processes = sum(plan.ranks(role) for role, _ in nodes)
    beside = attention * (caches + plan.config.grammar_memory) + processes * NODE_BYTES
    return _beside_caches(plan, known).total + beside


def _beside_caches(plan: Plan, nodes: Sequence[tuple[Role, int]]) -> Ledger:
    """Weights and M2N's slots of these nodes."""
    m = plan.most_micro_batches
    geometry, moving = plan.geometry(m), experts_on_the_move(plan.config)
    total = Ledger()
    for role, node in nodes:
        if role is Role.ATTENTION:
            own = attention_node(plan.spec, plan.precision, 0, 0, plan.config.attn_tp)
            slots = geometry.attention_bytes
        else:
            slots_held = plan.placement.num_slots(node)
            own = expert_node(plan.spec, plan.precision, slots_held, moving)
            slots = geometry.expert_bytes
        own += plan.shared_by_ranks(role)
        # On this road there is as much again that they send from.
        total += own + Ledger((("M2N", 2 * slots),))
    return total
