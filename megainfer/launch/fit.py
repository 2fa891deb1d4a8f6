"""Whether an instance fits into a machine's memory, and how large its KV caches may be."""

from collections.abc import Iterator
from dataclasses import replace

from megainfer.compute.selection import Precision
from megainfer.config import BLOCK_SIZE, EngineConfig, format_bytes
from megainfer.errors import ConfigError
from megainfer.launch.devices import ON_CPU, Devices
from megainfer.launch.machine import Machine
from megainfer.memory import (
    Ledger,
    Overhead,
    attention_node,
    expert_node,
    kv_block_bytes,
    routing_bytes,
)
from megainfer.models.spec import ModelSpec
from megainfer.sharing.budgets import Budgets
from megainfer.topology import Shard

KV_MEMORY_SHARE = 0.25
"""Of the memory that the weights leave, what the KV caches take unless told otherwise."""


def fitting_blocks(
    config: EngineConfig,
    spec: ModelSpec,
    precision: Precision,
    max_model_len: int,
    free: int,
    others: Ledger,
) -> int:
    """Blocks of one attention node's KV cache. free: what weights leave. others: what else there
    may be: where the number of blocks isn't given, all of it has room beside them, unless one
    request has none then.

    Raises ConfigError where the recurrent states, one request of `max_model_len` tokens or the
    caches that were asked for don't fit.
    """
    free -= _checked_state_bytes(config, spec, free)
    block_bytes = kv_block_bytes(spec, precision, config.attn_tp)
    if config.enable_return_routed_experts:
        block_bytes += BLOCK_SIZE * routing_bytes(spec)
    smallest = -(-max_model_len // BLOCK_SIZE)
    if config.kv_cache_memory is None:
        wanted = smallest * config.max_num_seqs
        blocks = min(
            wanted,
            max(
                _affordable(free - others.total, config.attn_gpus, block_bytes),
                min(_affordable(free, config.attn_gpus, block_bytes), smallest),
            ),
        )
    else:
        blocks = config.kv_cache_memory // block_bytes
    check_one_request_fits(blocks, smallest, block_bytes, max_model_len)
    _check_caches_fit(config.attn_gpus, blocks * block_bytes, free)
    return blocks


def overhead_of(
    config: EngineConfig,
    processes: int,
    budgets: Budgets | None,
    servers: int,
    devices: Devices = ON_CPU,
) -> Overhead:
    """What there is beside so many nodes' processes; see there."""
    on_gpus = 1 if config.colocated and devices.gpus else 0
    if not config.colocated:
        on_gpus = config.attn_gpus * config.attn_tp * bool(devices.attention)
        on_gpus += config.ffn_gpus * config.ffn_tp * bool(devices.experts)
    return Overhead(budgets, servers, config.attn_gpus, processes, config.grammar_memory, on_gpus)


def check_slots_fit(rows: int, slot_bytes: int, nodes: Ledger, machine: Machine) -> None:
    """M2N's slots beside all else.

    slot_bytes: of the whole instance, for as many micro-batches as may be chosen. rows: of a slot.
    nodes: what all nodes take. Raises ConfigError.
    """
    free = max(0, machine.available_memory - nodes.total)
    if slot_bytes > free:
        raise ConfigError(
            f"M2N slots of --max-num-batched-tokens {rows} rows need {format_bytes(slot_bytes)}, "
            f"but {_listed(nodes)} leave {format_bytes(free)}; use --max-num-batched-tokens "
            f"{max(1, rows * free // slot_bytes)} or a smaller --kv-cache-memory"
        )


def _affordable(free: int, nodes: int, block_bytes: int) -> int:
    return int(max(0, free) * KV_MEMORY_SHARE / nodes) // block_bytes


def _listed(ledger: Ledger) -> str:
    """`weights of 1.0 GiB and KV cache of 2.0 GiB`"""
    *first, last = [f"{what} of {format_bytes(size)}" for what, size in ledger.lines]
    return f"{', '.join(first)} and {last}" if first else last


def beside_weights(
    config: EngineConfig,
    spec: ModelSpec,
    precision: Precision,
    available: int,
    devices: Devices = ON_CPU,
) -> int:
    """Bytes of the host's memory that the weights of all nodes on the CPU leave: attention's are
    kept once a node, each expert once and once more for each replica. Raises ConfigError."""
    weights = _weight_bytes(config, spec, precision, devices)
    if weights < available:
        return available - weights
    fewer = "fewer --expert-replicas, " if config.ffn_gpus * config.expert_replicas else ""
    narrower = (
        (wish, _weight_bytes(config, spec, other, devices)) for wish, other in _narrower(precision)
    )
    fitting = next(((wish, size) for wish, size in narrower if size < available), None)
    what = (
        f"{fitting[0]}, which needs {format_bytes(fitting[1])}, "
        if fitting
        else "(no format of weights is narrow enough) "
    )
    raise ConfigError(
        f"the weights need {format_bytes(weights)} in {_kept(precision)}, but this machine has "
        f"{format_bytes(available)} of memory available; use {what}{fewer}fewer attention nodes "
        "or a smaller model"
    )


NARROWER = ("bfloat16", "int8", "int4")
"""What weights may be kept in to take less memory, the most precise first."""


def _narrower(precision: Precision) -> Iterator[tuple[str, Precision]]:
    """Options by which weights take less memory, experts' first, which are most of it."""
    for name in NARROWER:
        yield f"--expert-dtype {name}", replace(precision, experts=name)
        both = replace(precision, experts=name, attention=name)
        yield f"--expert-dtype {name} --attention-dtype {name}", both


def _kept(precision: Precision) -> str:
    if precision.expert_dtype == precision.attention_dtype:
        return precision.expert_dtype
    return f"{precision.expert_dtype} (experts) and {precision.attention_dtype} (others)"


def _weight_bytes(
    config: EngineConfig, spec: ModelSpec, precision: Precision, devices: Devices
) -> int:
    """Of all nodes on the CPU."""
    attention = attention_node(spec, precision, 0, 0, Shard.each(config.attn_tp)) * config.attn_gpus
    replicas = config.ffn_gpus * config.expert_replicas
    moving = config.ffn_gpus * experts_on_the_move(config)
    experts = expert_node(spec, precision, spec.num_experts + replicas, moving, on_gpu=False)
    weights = 0 if devices.attention else attention.of("weights")
    return weights + (0 if devices.experts else experts.total)


def experts_on_the_move(config: EngineConfig) -> int:
    """Experts of each layer that an expert node may hold beside those in its slots: what was read
    for the next placement, until that is entered."""
    return 1 if config.rebalance is not None else 0


def _checked_state_bytes(config: EngineConfig, spec: ModelSpec, free: int) -> int:
    """Bytes of all nodes' recurrent states, after which at least half of `free` is left."""
    a_request = config.attn_gpus * spec.state_bytes
    needed = config.max_num_seqs * a_request
    if needed > free // 2:
        raise ConfigError(
            f"recurrent states of --max-num-seqs {config.max_num_seqs} requests need "
            f"{format_bytes(needed)}, more than half of the {format_bytes(free)} that the weights "
            f"leave; use --max-num-seqs {max(1, free // 2 // a_request)}"
        )
    return needed


def check_one_request_fits(blocks: int, smallest: int, block_bytes: int, max_len: int) -> None:
    """smallest: blocks of a request of `max_len` tokens. Raises ConfigError."""
    if blocks >= smallest:
        return
    fix = (
        f"use --max-model-len {blocks * BLOCK_SIZE} or less, or"
        if blocks
        else f"a block of {BLOCK_SIZE} tokens alone needs {format_bytes(block_bytes)}; use"
    )
    raise ConfigError(
        f"one request of {max_len} tokens needs {format_bytes(smallest * block_bytes)} of KV "
        f"cache, but an attention node would have {format_bytes(blocks * block_bytes)}; "
        f"{fix} --kv-cache-memory {smallest * block_bytes}"
    )


def _check_caches_fit(nodes: int, cache_bytes: int, free: int) -> None:
    if nodes * cache_bytes > free:
        raise ConfigError(
            f"{nodes} KV caches of {format_bytes(cache_bytes)} need "
            f"{format_bytes(nodes * cache_bytes)}, but the weights leave {format_bytes(free)}; use "
            f"--kv-cache-memory {free // nodes} or less"
        )
