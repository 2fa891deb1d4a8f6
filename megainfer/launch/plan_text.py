"""A plan in words: what `--dry-run` prints, and every start before it begins."""

from collections.abc import Callable, Iterator, Sequence

from megainfer.compute.selection import IMPLEMENTATIONS
from megainfer.config import BLOCK_SIZE, format_bytes
from megainfer.launch.fit import overhead_of
from megainfer.launch.machine import Machine
from megainfer.launch.plan import Plan
from megainfer.memory import Ledger, Overhead
from megainfer.messages.message import Role
from megainfer.models.quantization import Codes
from megainfer.sharing.budgets import Budgets
from megainfer.topology import EMPTY, CoreAssignment


def describe(plan: Plan) -> list[str]:
    """What would run where, a line each."""
    return [*_instance_lines(plan), *_node_lines(plan), *_gpu_lines(plan), _slots_line(plan)]


def _on_host(plan: Plan, role: Role, node: int) -> str:
    """Of each rank, where they are on several."""
    if plan.places is None:
        return ""
    hosts = plan.places.of_ranks(role, node, plan.ranks(role))
    return f"on {' | '.join(hosts if len({*hosts}) > 1 else hosts[:1])}, "


def describe_requests(
    plan: Plan, budgets: Budgets, machine: Machine, servers: int = 1
) -> list[str]:
    """What requests may cost, and what all processes may take of memory together. servers: API
    servers."""
    around, nodes = _around(plan, budgets, servers), Ledger()
    if plan.places is None:
        nodes = plan.whole_ledger()
    total = (around + nodes).total
    free = format_bytes(machine.available_memory)
    more = (
        f", more than the {free} that are available: a smaller --request-memory or "
        "--kv-cache-memory helps"
    )
    return [
        f"requests   texts of {budgets.prompt_characters} characters, bodies of "
        f"{format_bytes(budgets.body_bytes)}; one client has {budgets.client_share:.0%} of what "
        "others leave",
        f"memory     {format_bytes(total)} at most in all processes{_here(plan)}"
        f"{more if total > machine.available_memory else ''}; beside nodes and M2N: "
        f"{_ledger_text(around)}",
    ]


def _here(plan: Plan) -> str:
    return "" if plan.places is None else " of this host"


def _around(plan: Plan, budgets: Budgets, servers: int) -> Ledger:
    """What there is on this host beside what nodes compute with."""
    if plan.places is not None:
        return Overhead(budgets, servers, 0, 0, 0).ledger
    return overhead_of(plan.config, len(plan.process_cores), budgets, servers, plan.devices).ledger


def _instance_lines(plan: Plan) -> Iterator[str]:
    layers = plan.spec.moe_layers
    yield (
        f"model      {plan.folder} ({plan.spec.architecture}, {len(plan.spec.layers)} layers, "
        f"{len(layers)} with {plan.spec.num_experts} experts, top-{plan.spec.top_k})"
    )
    yield f"computing  {plan.dtype}, {_where(plan)}"
    yield (
        f"kernels    {_kernels_text(plan)}; expert weights in "
        f"{plan.expert_dtype}, others in {plan.attention_dtype}"
    )
    yield from _stored_lines(plan)
    yield (
        f"context    {plan.max_model_len} tokens; up to {plan.config.max_num_seqs} requests and "
        f"{plan.num_blocks} KV blocks of {BLOCK_SIZE} tokens{_cache_text(plan)} an attention node"
    )
    yield from _prefix_lines(plan)
    yield from _graph_lines(plan)
    yield from _replica_lines(plan)
    yield (
        f"pipeline   {_micro_batch_text(plan)}; steps of at most "
        f"{plan.config.max_num_batched_tokens} tokens a micro-batch"
    )


def _node_lines(plan: Plan) -> Iterator[str]:
    for node in range(plan.num_attention):
        place = _on_host(plan, Role.ATTENTION, node) + _place(plan, Role.ATTENTION, node)
        taken = _node_ledger(plan, Role.ATTENTION, node, plan.attention_ledger)
        yield f"attention {node}  {place}  {_ledger_text(taken)}"
    for node in range(plan.num_expert):
        held, spares = _held(plan, node)
        place = _on_host(plan, Role.EXPERT, node) + _place(plan, Role.EXPERT, node)
        taken = _node_ledger(plan, Role.EXPERT, node, plan.expert_ledger)
        yield (
            f"expert {node}     {place}  {_expert_text(held)}{_spare_text(spares)} of each layer  "
            f"{_ledger_text(taken)}"
        )


def _node_ledger(plan: Plan, role: Role, node: int, ledger: Callable[[int, int], Ledger]) -> Ledger:
    """What all of its ranks take together; on the CPU, a ledger is of all of them anyway."""
    ranks = plan.ranks(role) if plan.devices.of(role, node) else 1
    return sum((ledger(node, rank) for rank in range(ranks)), start=Ledger())


def _gpu_lines(plan: Plan) -> Iterator[str]:
    """Of each GPU, what its nodes take there together, and for what."""
    nodes = plan.gpu_ledgers()
    for gpu in plan.devices.gpus:
        own = {name: ledger for name, (place, ledger) in nodes.items() if place == gpu}
        taken, free = sum(own.values(), start=Ledger()), format_bytes(gpu.gpu.free_memory)
        whom = f" for {', '.join(own)}" if own else ", for nodes that may join"
        where = f"{gpu.number}{gpu.host and f' of {gpu.host}'}"
        yield (
            f"GPU {where:<6} {gpu.gpu.name} ({gpu.gpu.architecture}), "
            f"{format_bytes(taken.total)} of the {free} that are free{whom}: {_ledger_text(taken)}"
        )


def _where(plan: Plan) -> str:
    """What computes, and what is counted."""
    devices = plan.devices
    split = [(name, ranks) for name, ranks in _tps(plan) if ranks > 1]
    if not devices.gpus and split:
        counted = " and ".join(f"--{name}-gpus nodes of {ranks} ranks" for name, ranks in split)
        return f"on CPU: {counted} (processes)"
    if not devices.gpus:
        return "on CPU: --attn-gpus and --ffn-gpus count processes"
    if devices.mixed:
        on_gpus, on_cpu = ("attention", "experts")[:: 1 if devices.attention else -1]
        return f"{on_gpus} on GPUs, {on_cpu} on CPU"
    return "on GPUs"


def _kernels_text(plan: Plan) -> str:
    names = dict.fromkeys((plan.kernels, plan.expert_kernels))
    text = " and ".join(IMPLEMENTATIONS[name].describe() for name in names)
    return f"{text}, batch-invariant" if plan.config.batch_invariant else text


def _cache_text(plan: Plan) -> str:
    """What keys and values are in, where it isn't what is computed in."""
    return "" if plan.kv_cache_dtype == plan.dtype else f" in {plan.kv_cache_dtype}"


def _ledger_text(ledger: Ledger) -> str:
    return "  ".join(f"{what} {format_bytes(size)}" for what, size in ledger.lines)


def _stored_lines(plan: Plan) -> Iterator[str]:
    """Where weights are dequantised: what is on disk isn't what is computed in."""
    if plan.quantization is not None:
        own = plan.quantization.codes is Codes.GGUF
        said = f"{plan.quantization}{'' if own else ', says config.json'}"
        anew = " and ".join(plan.quantization.requantised) if own else ""
        kept = plan.expert_dtype == plan.quantization.kept_as
        experts = f"experts; {anew} quantised anew" if anew and kept else "experts"
        yield (
            f"on disk    {said}; computed in {plan.expert_dtype} ({experts}) and "
            f"{plan.attention_dtype} (others)"
        )


def _prefix_lines(plan: Plan) -> Iterator[str]:
    """What becomes of a prefix cache that was asked for and can't be had."""
    if plan.config.prefix_cache and not plan.prefix_cache:
        yield (
            "prefixes   not cached: this model's recurrent states are kept for running requests "
            "only"
        )


def _graph_lines(plan: Plan) -> Iterator[str]:
    """Why what a GPU could be given in one call isn't."""
    if plan.config.attn_tp > 1 and plan.devices.attention and not plan.config.enforce_eager:
        yield (
            "graphs     of experts' stages only: attention nodes of several ranks, which tell each "
            "other rows within a stage, give their GPUs one kernel after the other"
        )


def _micro_batch_text(plan: Plan) -> str:
    m = plan.micro_batches
    if m is None:
        return "as many micro-batches as measuring the stages finds best"
    reason = "" if plan.config.micro_batches else " (no two stages can run at the same time)"
    return f"{m} micro-batch{'es' * (m > 1)}{reason}"


def _place(plan: Plan, role: Role, node: int) -> str:
    """Such as "core 2", "GPU 0  core 2", "2 ranks, cores 2 | 3,4" or "2 ranks, GPUs 0 | 1  cores 2
    | 3"."""
    ranks = range(plan.ranks(role))
    own = [plan.cores_of(role, node, rank) for rank in ranks]
    gpus = [str(gpu.number) for gpu in (plan.devices.of(role, node, rank) for rank in ranks) if gpu]
    if len(own) == 1:
        return "".join(f"GPU {gpu}  " for gpu in gpus) + _core_text(own[0])
    where = f"GPUs {' | '.join(gpus)}  " if gpus else ""
    cores = " | ".join(",".join(map(str, each.cores)) for each in own)
    return f"{len(own)} ranks, {where}cores {cores}"


def _tps(plan: Plan) -> list[tuple[str, int]]:
    """How options call a role, and the ranks of its nodes."""
    return [("attn", plan.config.attn_tp), ("ffn", plan.config.ffn_tp)]


def _core_text(assignment: CoreAssignment) -> str:
    cores = ",".join(str(core) for core in assignment.cores)
    return f"core{'s' * (assignment.threads > 1)} {cores}"


def _expert_text(experts: Sequence[int]) -> str:
    first, last = experts[0], experts[-1]
    return f"expert {first}" if first == last else f"experts {first}-{last}"


def _held(plan: Plan, node: int) -> tuple[list[int], list[int]]:
    """Experts that a node serves, and its spares."""
    table = plan.placement.table(plan.spec.first_moe_layer)
    pairs = [*zip(table.experts[node], table.ways[node], strict=True)]
    held = [expert for expert, ways in pairs if ways]
    return held, [expert for expert, ways in pairs if expert != EMPTY and not ways]


def _spare_text(experts: Sequence[int]) -> str:
    if not experts:
        return ""
    return f" (spare: {', '.join(map(str, experts))})"


def _replica_lines(plan: Plan) -> Iterator[str]:
    """What an expert node's death would mean, where there are others, and who moves experts."""
    seconds = plan.config.rebalance
    if seconds is not None:
        yield f"balancing  every {seconds:g} s experts may move to where they take less time"
    if plan.num_expert == 1:
        return
    owners = plan.placement.owners(plan.spec.first_moe_layer)
    covered, needed = sum(len(nodes) > 1 for nodes in owners), -(-len(owners) // plan.num_expert)
    if plan.placement.survives_any_node:
        yield "replicas   of every expert: when an expert node dies, the others serve on at once"
    else:
        yield (
            f"replicas   of {covered} of {len(owners)} experts: when an expert node dies, requests "
            f"wait until it is back (--expert-replicas {needed}: they would not)"
        )


def warnings(plan: Plan) -> Iterator[str]:
    """More processes than cores: at every layer each waits until all others had theirs."""
    if plan.places is not None:
        return  # cores are of several hosts
    processes = len(plan.process_cores)
    cores = len({core for assignment in plan.cores for core in assignment.cores})
    # Ranks of nodes that take turns may have all cores, each role's together.
    first, last = plan.cores[0], plan.cores[-1]
    ranks_share = plan.config.attn_tp > first.threads or plan.config.ffn_tp > last.threads
    crowded = len(plan.cores) > cores or ranks_share
    if crowded and not plan.config.colocated and not plan.devices.gpus:
        yield (
            f"warning    {processes} processes share {cores} core{'s' * (cores > 1)}, and wait for "
            f"each other at every layer, which may be many times slower; {_better(plan, cores)}"
        )


def _better(plan: Plan, cores: int) -> str:
    """As many processes as there are cores, in about the same proportion."""
    if cores < 2:
        return "--colocated, one process with both roles, is better here"
    share = plan.num_attention / (plan.num_attention + plan.num_expert)
    attention = min(max(1, round(share * cores)), cores - 1)
    return (
        f"--attn-gpus {attention} --ffn-gpus {cores - attention} is better here, or --colocated, "
        "one process with both roles"
    )


def _slots_line(plan: Plan) -> str:
    m = plan.micro_batches
    geometry = plan.geometry(m or 1)
    each = "" if m else " for each micro-batch"
    road = plan.road
    transport = f"{road.kind} ({road.groups})" if road.kind == "dist" else road.kind
    if road.kind == "mixed":
        transport = f"{road.near} on a host, dist ({road.groups}) between hosts"
    if plan.config.colocated:
        transport = "local (one process)"
    return (
        f"M2N        {transport}, slots of {plan.config.max_num_batched_tokens} rows: "
        f"{format_bytes(geometry.attention_bytes)} an attention node, "
        f"{format_bytes(geometry.expert_bytes)} an expert node{each}"
    )
