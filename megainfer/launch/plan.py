"""From a wish to a plan: what would run where, and whether it fits; nothing is started here."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megainfer.compute.selection import IMPLEMENTATIONS, Precision, resolve_kernels
from megainfer.config import (
    BLOCK_SIZE,
    DTYPE_BYTES,
    MAX_MICRO_BATCHES,
    MAX_TUNED_MICRO_BATCHES,
    EngineConfig,
    format_bytes,
)
from megainfer.errors import ConfigError
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.launch.machine import available_memory, has_bfloat16_arithmetic, usable_cores
from megainfer.m2n.geometry import Geometry
from megainfer.models.quantization import QuantizationSpec, quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.sources import attention_weight_bytes, sparse_attention_weights
from megainfer.models.spec import ModelSpec
from megainfer.topology import (
    CoreAssignment,
    Placement,
    assign_cores,
    contiguous_placement,
    have_own_cores,
    share_cores,
)

INT8_BLOCK = 128
"""int8 weights that share a float32 scale."""

SPIN_SECONDS = 1e-3
"""How long a node looks for messages before it sleeps, at most, where it has a core of its own."""
KV_MEMORY_SHARE = 0.25
"""Of the memory that the weights leave, what the KV caches take unless told otherwise."""
MAX_PROFILED_ROWS = 512
"""Stage times go on in a straight line from here, so that measuring is a matter of a moment."""


@dataclass(frozen=True)
class Plan:
    """A resolved deployment; every process of it works from the same one.

    cores: one assignment a process, attention nodes first, then expert nodes; a single one when
    colocated. micro_batches: m where it needs no measurement, else None. token: a random name that
    keeps this instance's sockets apart from any other's. generation: end tokens, and sampling for
    what a request leaves out. quantization: of the weights on disk.
    """

    config: EngineConfig
    folder: Path
    spec: ModelSpec
    placement: Placement
    dtype: str
    expert_dtype: str
    attention_dtype: str
    kernels: str
    max_model_len: int
    num_blocks: int
    cores: tuple[CoreAssignment, ...]
    micro_batches: int | None
    token: str
    generation: GenerationDefaults
    quantization: QuantizationSpec | None

    @property
    def num_attention(self) -> int:
        return self.config.attn_gpus

    @property
    def num_expert(self) -> int:
        return self.config.ffn_gpus

    @property
    def most_micro_batches(self) -> int:
        """The largest m that there may be."""
        if self.micro_batches is not None:
            return self.micro_batches
        return MAX_MICRO_BATCHES if self.num_attention > 1 else MAX_TUNED_MICRO_BATCHES

    @property
    def endpoint(self) -> str:
        """Where the front end listens for attention nodes: an abstract socket, so no file."""
        return f"ipc://@megainfer-{self.token}-front"

    def cores_of_attention(self, node: int) -> CoreAssignment:
        return self.cores[0 if self.config.colocated else node]

    def cores_of_expert(self, node: int) -> CoreAssignment:
        return self.cores[0 if self.config.colocated else self.num_attention + node]

    @property
    def spin_seconds(self) -> float:
        """How long a waiting node may keep its core busy: not where others would need it."""
        return SPIN_SECONDS if have_own_cores(self.cores) else 0.0

    def geometry(self, micro_batches: int) -> Geometry:
        """The layout of M2N's slots."""
        return Geometry(
            num_attention=self.num_attention,
            num_expert=self.num_expert,
            micro_batches=micro_batches,
            capacity=self.config.max_num_batched_tokens,
            hidden_size=self.spec.hidden_size,
            top_k=self.spec.top_k,
            dtype=self.dtype,
        )

    @property
    def prefix_cache(self) -> bool:
        """Whether prefixes are remembered: not of recurrent models, since blocks of the KV cache
        don't hold the states that belong to them."""
        return self.config.prefix_cache and not self.spec.is_recurrent

    @property
    def num_states(self) -> int:
        """Sequences whose recurrent states one attention node has room for."""
        return self.config.max_num_seqs if self.spec.is_recurrent else 0

    def state_bytes(self) -> int:
        """Bytes of one attention node's recurrent states."""
        return self.num_states * self.spec.state_bytes

    def kv_bytes(self) -> int:
        """Bytes of one attention node's KV cache."""
        per_token = self.spec.kv_bytes_per_token(DTYPE_BYTES[self.dtype])
        return self.num_blocks * BLOCK_SIZE * per_token


def make_plan(config: EngineConfig, folder: Path, token: str | None = None) -> Plan:
    """Check the wish against the model in `folder` and this machine; a new token unless given.

    Raises ModelError for the folder, ConfigError (naming the values and what would fit) for the
    rest.
    """
    spec = load_spec(folder)
    placement = contiguous_placement(spec.num_experts, config.ffn_gpus)
    dtype = _dtype(config, spec)
    expert_dtype = dtype if config.expert_dtype == "auto" else config.expert_dtype
    attention_dtype = dtype if config.attention_dtype == "auto" else config.attention_dtype
    kernels = resolve_kernels(config.kernels)
    IMPLEMENTATIONS[kernels].check(Precision(dtype, expert_dtype, attention_dtype))
    max_model_len = _max_model_len(config, spec)
    weights = _weight_bytes(config, spec, dtype, expert_dtype, attention_dtype)
    cores = usable_cores()
    assigned = _cores(config, kernels, cores)
    plan = Plan(
        config=config,
        folder=folder,
        spec=spec,
        placement=placement,
        dtype=dtype,
        expert_dtype=expert_dtype,
        attention_dtype=attention_dtype,
        kernels=kernels,
        max_model_len=max_model_len,
        num_blocks=_num_blocks(config, spec, dtype, weights, max_model_len),
        cores=assigned,
        micro_batches=_micro_batches(config, assigned),
        token=token or secrets.token_hex(16),
        generation=GenerationDefaults.chosen(config, folder),
        quantization=quantization_of(folder),
    )
    _check_buffers_fit(plan)
    return plan


def _dtype(config: EngineConfig, spec: ModelSpec) -> str:
    """`auto` is the checkpoint's own bfloat16 where the cores have it, else float32."""
    if config.dtype != "auto":
        return config.dtype
    return "bfloat16" if spec.dtype == "bfloat16" and has_bfloat16_arithmetic() else "float32"


def _micro_batches(config: EngineConfig, cores: tuple[CoreAssignment, ...]) -> int | None:
    """The user's own m, or 1 where nothing can overlap: whoever works has the cores of the others
    too, and a second micro-batch would only read the experts twice. None: it takes a measurement.
    """
    if config.micro_batches is not None:
        return config.micro_batches
    return 1 if config.colocated or not have_own_cores(cores) else None


def _cores(
    config: EngineConfig, kernels: str, cores: tuple[int, ...]
) -> tuple[CoreAssignment, ...]:
    """`auto`: one attention and one expert process whose single micro-batch is always on one side
    or the other take turns anyway, and each is faster with all cores. Torch's threads would be in
    each other's way: they stay awake for long."""
    num_processes = 1 if config.colocated else config.attn_gpus + config.ffn_gpus
    own_threads = IMPLEMENTATIONS[kernels].own_threads
    turns = num_processes == 2 and config.micro_batches in (None, 1) and own_threads
    if config.cores == "shared" or (config.cores == "auto" and turns):
        return share_cores(num_processes, cores)
    return assign_cores(num_processes, cores)


def _max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    if config.max_model_len == 1:
        raise ConfigError("--max-model-len 1 has no room for a prompt and an answer; use 2 or more")
    if config.max_model_len is None:
        return spec.max_position
    if config.max_model_len > spec.max_position:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the model's "
            f"max_position_embeddings of {spec.max_position}; use at most {spec.max_position}"
        )
    return config.max_model_len


def _num_blocks(
    config: EngineConfig, spec: ModelSpec, dtype: str, weights: int, max_model_len: int
) -> int:
    """Blocks of one attention node's KV cache."""
    block_bytes = BLOCK_SIZE * spec.kv_bytes_per_token(DTYPE_BYTES[dtype])
    free = available_memory() - weights
    if free <= 0:
        raise ConfigError(
            f"the weights need {format_bytes(weights)} in {dtype}, but this machine has "
            f"{format_bytes(available_memory())} of memory available; use fewer attention nodes, "
            "--dtype bfloat16, --expert-dtype int8 or a smaller model"
        )
    free -= _checked_state_bytes(config, spec, free)
    smallest = -(-max_model_len // BLOCK_SIZE)
    if config.kv_cache_memory is None:
        wanted = smallest * config.max_num_seqs
        affordable = int(free * KV_MEMORY_SHARE / config.attn_gpus) // block_bytes
        blocks = min(wanted, affordable)
    else:
        blocks = config.kv_cache_memory // block_bytes
    _check_kv_fits(config, blocks, smallest, block_bytes, max_model_len, free)
    return blocks


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


def _check_kv_fits(
    config: EngineConfig, blocks: int, smallest: int, block_bytes: int, max_len: int, free: int
) -> None:
    if blocks < smallest:
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
    total = blocks * block_bytes * config.attn_gpus
    if total > free:
        raise ConfigError(
            f"{config.attn_gpus} KV caches of {format_bytes(blocks * block_bytes)} need "
            f"{format_bytes(total)}, but the weights leave {format_bytes(free)}; use "
            f"--kv-cache-memory {free // config.attn_gpus} or less"
        )


def _check_buffers_fit(plan: Plan) -> None:
    """M2N's slots beside all else, for as many micro-batches as may be chosen."""
    weights = _weight_bytes(
        plan.config, plan.spec, plan.dtype, plan.expert_dtype, plan.attention_dtype
    )
    caches = plan.num_attention * (plan.kv_bytes() + plan.state_bytes())
    free = max(0, available_memory() - weights - caches)
    needed = plan.geometry(plan.most_micro_batches).total_bytes
    rows = plan.config.max_num_batched_tokens
    if needed > free:
        raise ConfigError(
            f"M2N slots of --max-num-batched-tokens {rows} rows need {format_bytes(needed)}, but "
            f"weights and KV caches leave {format_bytes(free)}; use --max-num-batched-tokens "
            f"{max(1, rows * free // needed)} or a smaller --kv-cache-memory"
        )


def _weight_bytes(
    config: EngineConfig, spec: ModelSpec, dtype: str, expert_dtype: str, attention_dtype: str
) -> int:
    """Bytes of all weights in all processes: attention's once a node, each expert once."""
    experts = spec.num_experts * len(spec.moe_layers) * _expert_bytes(spec, expert_dtype)
    return config.attn_gpus * _attention_bytes(spec, dtype, attention_dtype) + experts


def _attention_bytes(spec: ModelSpec, dtype: str, attention_dtype: str) -> int:
    """Bytes of an attention node's weights; the table of embeddings stays in the instance's dtype,
    beside its packed copy where it is the head as well, and so does sparse attention."""
    table, every = spec.vocab_size * spec.hidden_size, attention_weight_bytes(spec, 1)
    sparse = sparse_attention_weights(spec)
    packed = (every if spec.tie_word_embeddings else every - table) - sparse
    return (table + sparse) * DTYPE_BYTES[dtype] + _stored_bytes(packed, attention_dtype)


def _expert_bytes(spec: ModelSpec, expert_dtype: str) -> int:
    """Bytes of one expert of one layer."""
    return _stored_bytes(spec.expert_weight_bytes(1), expert_dtype)


def _stored_bytes(weights: int, weight_dtype: str) -> int:
    """Bytes of these many weights, scales included."""
    if weight_dtype == "int8":
        return weights + 4 * weights // INT8_BLOCK
    return weights * DTYPE_BYTES[weight_dtype]


def profile_rows(max_num_seqs: int) -> list[int]:
    """1, 2, 4, … and `max_num_seqs`, to a bound: the micro-batch sizes that are measured.

    >>> profile_rows(6)
    [1, 2, 4, 6]
    """
    most = min(max_num_seqs, MAX_PROFILED_ROWS)
    powers = [1 << i for i in range(most.bit_length()) if 1 << i < most]
    return [*powers, most]


def describe(plan: Plan) -> list[str]:
    """What would run where, a line each; what `--dry-run` prints."""
    layers = plan.spec.moe_layers
    attention_bytes = _attention_bytes(plan.spec, plan.dtype, plan.attention_dtype)
    lines = [
        f"model      {plan.folder} ({plan.spec.architecture}, {len(plan.spec.layers)} layers, "
        f"{len(layers)} with {plan.spec.num_experts} experts, top-{plan.spec.top_k})",
        f"computing  {plan.dtype}, on CPU: --attn-gpus and --ffn-gpus count processes",
        f"kernels    {IMPLEMENTATIONS[plan.kernels].describe()}; expert weights in "
        f"{plan.expert_dtype}, others in {plan.attention_dtype}",
        *_stored_text(plan),
        f"context    {plan.max_model_len} tokens; up to {plan.config.max_num_seqs} requests and "
        f"{plan.num_blocks} KV blocks of {BLOCK_SIZE} tokens an attention node",
        *_prefix_lines(plan),
        f"pipeline   {_micro_batch_text(plan)}; steps of at most "
        f"{plan.config.max_num_batched_tokens} tokens a micro-batch",
    ]
    for node in range(plan.num_attention):
        lines.append(
            f"attention {node}  {_core_text(plan.cores_of_attention(node))}  "
            f"weights {format_bytes(attention_bytes)}  "
            f"KV cache {format_bytes(plan.kv_bytes())}{_state_text(plan)}"
        )
    for node in range(plan.num_expert):
        experts = plan.placement.experts_of(node)
        weights = len(experts) * len(layers) * _expert_bytes(plan.spec, plan.expert_dtype)
        lines.append(
            f"expert {node}     {_core_text(plan.cores_of_expert(node))}  "
            f"{_expert_text(experts)} of each layer  weights {format_bytes(weights)}"
        )
    lines.append(_buffer_text(plan))
    return lines


def _stored_text(plan: Plan) -> list[str]:
    """A line where weights are dequantised: what is on disk isn't what is computed in."""
    if plan.quantization is None:
        return []
    return [
        f"on disk    {plan.quantization}, says config.json; computed in {plan.expert_dtype} "
        f"(experts) and {plan.attention_dtype} (others)"
    ]


def _prefix_lines(plan: Plan) -> list[str]:
    """What becomes of a prefix cache that was asked for and can't be had."""
    if plan.prefix_cache or not plan.config.prefix_cache:
        return []
    return [
        "prefixes   not cached: this model's recurrent states are kept for running requests only"
    ]


def _state_text(plan: Plan) -> str:
    if not plan.num_states:
        return ""
    return f"  recurrent states {format_bytes(plan.state_bytes())}"


def _micro_batch_text(plan: Plan) -> str:
    m = plan.micro_batches
    if m is None:
        return "as many micro-batches as measuring the stages finds best"
    reason = "" if plan.config.micro_batches else " (no two stages can run at the same time)"
    return f"{m} micro-batch{'es' * (m > 1)}{reason}"


def _core_text(assignment: CoreAssignment) -> str:
    cores = ",".join(str(core) for core in assignment.cores)
    return f"core{'s' * (assignment.threads > 1)} {cores}"


def _expert_text(experts: Sequence[int]) -> str:
    first, last = experts[0], experts[-1]
    return f"expert {first}" if first == last else f"experts {first}-{last}"


def _buffer_text(plan: Plan) -> str:
    m = plan.micro_batches
    geometry = plan.geometry(m or 1)
    each = "" if m else " for each micro-batch"
    transport = "local (one process)" if plan.config.colocated else "shm"
    return (
        f"M2N        {transport}, slots of {plan.config.max_num_batched_tokens} rows: "
        f"{format_bytes(geometry.attention_region_bytes)} an attention node, "
        f"{format_bytes(geometry.expert_region_bytes)} an expert node{each}"
    )
