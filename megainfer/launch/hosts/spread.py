"""From a wish to a plan for several hosts, each of which has the nodes that agents start there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megainfer.config import EngineConfig, format_bytes
from megainfer.errors import ConfigError
from megainfer.launch.choices import numa_sockets, own_cores
from megainfer.launch.fit import experts_on_the_move, fitting_blocks
from megainfer.launch.hosts.gpus import choose_on_hosts, roles_on_hosts
from megainfer.launch.hosts.places import Host, Part, Places, Wishes, place_nodes
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan, make_plan
from megainfer.memory import (
    GPU_NODE_BYTES,
    NODE_BYTES,
    Ledger,
    Overhead,
    attention_node,
    expert_node,
    handed_over,
    kv_block_bytes,
)
from megainfer.messages.message import Role
from megainfer.topology import (
    CoreAssignment,
    Shard,
    assign_cores_beside,
    have_own_cores,
    join_cores,
    share_cores,
)

_DEFAULT_ADDRESS = EngineConfig().m2n_host


@dataclass(frozen=True, slots=True)
class Site:
    """Several hosts. wishes: where the user wants a node, or a rank of one, to be. hands_over:
    whether expert nodes may have experts of each other."""

    hosts: tuple[Host, ...]
    wishes: Wishes
    hands_over: bool = False


def make_spread_plan(config: EngineConfig, folder: Path, site: Site) -> Plan:
    """As `plan.make_plan`, for the nodes of an instance on these hosts. What the host of the API
    server takes is none of its affair."""
    _check(config)
    ranks = {Role.ATTENTION: config.attn_tp, Role.EXPERT: config.ffn_tp}
    on_gpus = roles_on_hosts(config, site.hosts)
    places = place_nodes(
        *(config.attn_gpus, config.ffn_gpus, site.hosts, site.wishes, ranks, on_gpus)
    )
    places = replace(places, hands_over=site.hands_over and config.ffn_tp == 1)
    devices = choose_on_hosts(config, places, site.hosts, on_gpus)
    together = _together([host.machine for host in site.hosts])
    plan = make_plan(config, folder, together, sites=(places, devices))
    spread = _with_cores(plan, places, site.hosts, ranks)
    own = bool(on_gpus) or all(_have_own_cores(spread, host.name) for host in site.hosts)
    spread = replace(spread, micro_batches=config.micro_batches or (None if own else 1))
    blocks = [_fitting_blocks(spread, host) for host in site.hosts]
    if devices.attention:  # which fit on each of their GPUs, whatever the hosts have
        return spread
    return replace(spread, num_blocks=min(fit for fit in blocks if fit is not None))


def _check(config: EngineConfig) -> None:
    refused = {
        "--colocated": config.colocated and "is one process, which needs no agents",
        "--m2n shm": config.m2n == "shm" and "is memory of one host; leave it out",
        "--m2n-host": config.m2n_host != _DEFAULT_ADDRESS
        and "is of one host; each agent's --host says where its nodes listen",
        "--gpus": config.gpus is not None
        and "is of one host; each agent's --gpus says which there are",
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
    )


def _with_cores(
    plan: Plan, places: Places, hosts: Sequence[Host], ranks: Mapping[Role, int]
) -> Plan:
    """Each host's cores are shared by its processes, and those of a node's ranks there by these."""
    nodes = [(Role.ATTENTION, node) for node in range(plan.num_attention)]
    nodes += [(Role.EXPERT, node) for node in range(plan.num_expert)]
    cores: dict[tuple[Role, int], CoreAssignment] = {}
    of_ranks: dict[tuple[Role, int, int], CoreAssignment] = {}
    for host in hosts:
        parts = places.on(host.name, ranks)
        for part, own in zip(parts, _part_cores(plan, host, parts), strict=True):
            if part.leads:
                cores[part.role, part.node] = own
            shares = own.shared_by(len(part.ranks))
            for rank, share in zip(part.ranks, shares, strict=True):
                of_ranks[part.role, part.node, rank] = share
    by_rank = (tuple(of_ranks[*node, rank] for rank in range(ranks[node[0]])) for node in nodes)
    return replace(
        plan,
        cores=tuple(cores[node] for node in nodes),
        rank_cores=tuple(by_rank) if places.elsewhere else (),
    )


def _part_cores(plan: Plan, host: Host, parts: Sequence[Part]) -> Sequence[CoreAssignment]:
    """Of what a host has of each node; ranks count as processes. Where one role is on GPUs, its
    nodes need a core each."""
    config, ranks = plan.config, [len(part.ranks) for part in parts]
    cores, sockets = host.machine.cores, numa_sockets(config, host.machine)
    if config.cores == "shared" or not ranks:
        own = share_cores(len(ranks), cores)
    elif plan.devices.mixed:
        light = [_is_on_gpu(plan, part) for part in parts for _ in part.ranks]
        own = join_cores(assign_cores_beside(light, cores), ranks)
    else:
        own = join_cores(own_cores(sum(ranks), cores, sockets), ranks)
    return [replace(each, near=bool(sockets)) for each in own]


def _is_on_gpu(plan: Plan, part: Part) -> bool:
    return plan.devices.of(part.role, part.node) is not None


def _parts_on(plan: Plan, host: str) -> list[Part]:
    assert plan.places is not None
    return plan.places.on(host, {role: plan.ranks(role) for role in (Role.ATTENTION, Role.EXPERT)})


def _have_own_cores(plan: Plan, host: str) -> bool:
    """Whether no two processes of a host share a core."""
    return have_own_cores(
        tuple(
            plan.cores_of(part.role, part.node, rank)
            for part in _parts_on(plan, host)
            for rank in part.ranks
        )
    )


def _fitting_blocks(plan: Plan, host: Host) -> int | None:
    """Blocks of an attention node's cache that this host has room for; None where none is in its
    memory. Raises ConfigError where the host has no room for its nodes."""
    parts = _parts_on(plan, host.name)
    if not parts:
        return None
    free = host.machine.available_memory - _beside_caches(plan, parts).total
    if free <= 0:
        raise ConfigError(
            f"host {host.name} has {format_bytes(host.machine.available_memory)} of memory "
            f"available, {format_bytes(-free)} less than its {len(parts)} nodes need; place fewer "
            "there (--place), or use --expert-dtype int8 or a smaller --max-num-batched-tokens"
        )
    attention = sum(len(part.ranks) for part in parts if part.role is Role.ATTENTION)
    if not attention or plan.devices.attention:
        return None
    leading = sum(part.leads for part in parts if part.role is Role.ATTENTION)
    grammars = plan.config.grammar_memory
    on_gpus = _processes([part for part in parts if _is_on_gpu(plan, part)])
    others = Overhead(None, 0, leading, _processes(parts), grammars, on_gpus).ledger
    # Of nodes that are there in part: as if all of a node were, on a host with so much more.
    nodes, rest = divmod(attention, plan.config.attn_tp)
    if rest:
        nodes = 1
        free = free * plan.config.attn_tp // attention
        others = others.share(plan.config.attn_tp, attention)
    own = replace(plan.config, attn_gpus=nodes)
    return fitting_blocks(own, plan.spec, plan.precision, plan.max_model_len, free, others)


def needs_of(plan: Plan, nodes: Sequence[tuple[Role, int]]) -> int:
    """Bytes that these nodes, all of their ranks, take of a host: see `need_of_parts`."""
    return need_of_parts(plan, [whole(plan, *node) for node in nodes])


def whole(plan: Plan, role: Role, node: int) -> Part:
    """A node with all of its ranks."""
    return Part(role, node, tuple(range(plan.ranks(role))))


def need_of_parts(plan: Plan, parts: Sequence[Part]) -> int:
    """Bytes that these take of a host, with what comes with their processes. A node that joined
    while it served counts as the largest of its role."""
    largest = max(range(plan.num_expert), key=lambda node: plan.expert_ledger(node).total)
    known = [
        part
        if part.role is Role.ATTENTION or part.node < plan.num_expert
        else part._replace(node=largest)
        for part in parts
    ]
    block = kv_block_bytes(plan.spec, plan.precision, plan.config.attn_tp)
    caches = plan.num_blocks * block + plan.num_states * plan.spec.state_bytes
    if plan.devices.attention:
        caches = 0
    beside = 0
    for part in parts:
        beside += len(part.ranks) * (GPU_NODE_BYTES if _is_on_gpu(plan, part) else NODE_BYTES)
        if part.role is Role.ATTENTION:
            beside += -(-caches * len(part.ranks) // plan.config.attn_tp)
            beside += part.leads * plan.config.grammar_memory
    return _beside_caches(plan, known).total + beside


def _processes(parts: Sequence[Part]) -> int:
    return sum(len(part.ranks) for part in parts)


def _beside_caches(plan: Plan, parts: Sequence[Part]) -> Ledger:
    """What these take of their hosts' memory: weights, unless a GPU has them, M2N's slots, whose
    payloads are in GPUs' memory where all nodes are on GPUs, what ranks tell each other, and what
    nodes hand over."""
    m = plan.most_micro_batches
    geometry, moving = plan.geometry(m), experts_on_the_move(plan.config)
    total = Ledger()
    for part in parts:
        if part.role is Role.ATTENTION:
            shards = Shard.each(plan.config.attn_tp)
            weights = attention_node(plan.spec, plan.precision, 0, 0, shards)
            slots = geometry.attention_region_bytes
        else:
            slots_held = plan.placement.num_slots(part.node)
            weights = expert_node(plan.spec, plan.precision, slots_held, moving)
            slots = geometry.expert_region_bytes
        on_gpu = _is_on_gpu(plan, part)
        if on_gpu:
            weights = Ledger()
        if part.role is Role.EXPERT and plan.places is not None and plan.places.hands_over:
            total += handed_over(plan.spec, plan.precision, on_gpu=on_gpu)
        total += weights.share(len(part.ranks), plan.ranks(part.role))
        # Those of the first rank's host share it; of another each has its own.
        total += plan.shared_by_ranks(part.role) * (1 if part.leads else len(part.ranks))
        if part.leads:  # on this road there is as much again that they send from
            total += Ledger((("M2N", 2 * slots),))
    return total
