"""From a wish to a plan: what would run where, and whether it fits; nothing is started here."""

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from megainfer.compute.selection import IMPLEMENTATIONS, Precision, resolve_kernels
from megainfer.config import (
    MAX_MICRO_BATCHES,
    MAX_TUNED_MICRO_BATCHES,
    SCALING_LIMIT,
    EngineConfig,
)
from megainfer.errors import ConfigError
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.launch.fit import (
    check_slots_fit,
    experts_on_the_move,
    fitting_blocks,
    overhead_of,
)
from megainfer.launch.machine import Machine
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.roads import PortOptions, Road
from megainfer.memory import Ledger, attention_node, expert_node
from megainfer.models.quantization import QuantizationSpec, quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec
from megainfer.planner.profiles import profile_rows
from megainfer.sharing.budgets import BudgetOptions, Budgets
from megainfer.topology import (
    CoreAssignment,
    Placement,
    assign_cores,
    contiguous_placement,
    have_own_cores,
    share_cores,
)

SPIN_SECONDS = 1e-3
"""How long a node looks for messages before it sleeps, at most, where it has a core of its own."""


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
    def measures(self) -> bool:
        """Whether m is chosen from what stages and transfers take."""
        return self.micro_batches is None

    @property
    def most_micro_batches(self) -> int:
        """The largest m that there may be."""
        if self.micro_batches is not None:
            return self.micro_batches
        return MAX_MICRO_BATCHES if self.num_attention > 1 else MAX_TUNED_MICRO_BATCHES

    def front_endpoint(self, server: int = 0, incarnation: int = 0) -> str:
        """Where a front end listens for attention nodes: an abstract socket, so no file."""
        return f"ipc://@megainfer-{self.token}-front-{server}-{incarnation}"

    def server_name(self, server: int) -> str:
        """The abstract socket on which API servers ask each other."""
        return f"megainfer-{self.token}-server-{server}"

    @property
    def most_attention(self) -> int:
        """Attention nodes that there may be once it serves."""
        return _limit(self.config.max_attn_gpus, self.num_attention, self.config.colocated)

    @property
    def most_expert(self) -> int:
        """Expert nodes that there may be once it serves: none without an expert."""
        most = _limit(self.config.max_ffn_gpus, self.num_expert, self.config.colocated)
        return min(most, self.spec.num_experts)

    def cores_of_attention(self, node: int) -> CoreAssignment:
        """One that joins later shares another's."""
        return self.cores[0 if self.config.colocated else node % len(self.cores)]

    def cores_of_expert(self, node: int) -> CoreAssignment:
        """As `cores_of_attention`."""
        if self.config.colocated:
            return self.cores[0]
        return self.cores[(self.num_attention + node) % len(self.cores)]

    @property
    def spin_seconds(self) -> float:
        """How long a waiting node may keep its core busy: not where others would need it."""
        return SPIN_SECONDS if have_own_cores(self.cores) else 0.0

    @property
    def profiled_rows(self) -> list[int]:
        """The sizes of micro-batches whose stages are measured for the choice of m."""
        return profile_rows(min(self.config.max_num_seqs, self.config.max_num_batched_tokens))

    @property
    def road(self) -> Road:
        """What carries the messages between its nodes."""
        return Road("shm", self.token, PortOptions(self.spin_seconds))

    def roomy_geometry(self, micro_batches: int) -> Geometry:
        """The layout of M2N's slots, with room for as many nodes as there may be."""
        own = self.geometry(micro_batches)
        return replace(own, num_attention=self.most_attention, num_expert=self.most_expert)

    def geometry(self, micro_batches: int) -> Geometry:
        """The same for the nodes to begin with: what they really take of memory."""
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

    @property
    def precision(self) -> Precision:
        return Precision(self.dtype, self.expert_dtype, self.attention_dtype)

    def attention_ledger(self) -> Ledger:
        """What one attention node takes of memory, beside M2N's slots."""
        return attention_node(self.spec, self.precision, self.num_blocks, self.num_states)

    def expert_ledger(self, node: int) -> Ledger:
        """What this expert node takes of memory, beside M2N's slots."""
        moving = experts_on_the_move(self.config)
        return expert_node(self.spec, self.precision, self.placement.num_slots(node), moving)

    def nodes_ledger(self) -> Ledger:
        """What all nodes together take of memory, beside M2N's slots."""
        experts = (self.expert_ledger(node) for node in range(self.num_expert))
        return sum(experts, start=self.attention_ledger() * self.num_attention)

    def whole_ledger(self) -> Ledger:
        """The same with M2N's slots, for as many micro-batches as may be chosen."""
        slots = self.geometry(self.most_micro_batches).total_bytes
        return self.nodes_ledger() + Ledger((("M2N", slots),))


def _limit(wish: int | None, least: int, fixed: bool) -> int:
    if fixed:
        return least
    return max(least, SCALING_LIMIT) if wish is None else wish


def make_plan(
    config: EngineConfig,
    folder: Path,
    machine: Machine,
    budgets: BudgetOptions | None = None,
    servers: int = 0,
) -> Plan:
    """Check the wish against the model in `folder` and a machine, the one that it is to run on.

    budgets: of the requests that so many API servers take; without them there are none.

    Raises ModelError for the folder, ConfigError (naming the values and what would fit) for the
    rest.
    """
    spec = load_spec(folder, config.hf_overrides)
    placement = contiguous_placement(
        spec.num_experts, config.ffn_gpus, spec.moe_layers, config.expert_replicas
    )
    kernels = resolve_kernels(config.kernels)
    precision = _precision(config, spec, machine)
    IMPLEMENTATIONS[kernels].check(precision)
    max_model_len = _max_model_len(config, spec)
    cores = _cores(config, kernels, machine.cores)
    bounds = None if budgets is None else Budgets.of(budgets, max_model_len)
    others = overhead_of(config, len(cores), bounds, servers).ledger
    plan = Plan(
        config=config,
        folder=folder,
        spec=spec,
        placement=placement,
        dtype=precision.dtype,
        expert_dtype=precision.expert_dtype,
        attention_dtype=precision.attention_dtype,
        kernels=kernels,
        max_model_len=max_model_len,
        num_blocks=fitting_blocks(config, spec, precision, max_model_len, machine, others),
        cores=cores,
        micro_batches=_micro_batches(config, cores),
        token=secrets.token_hex(16),
        generation=GenerationDefaults.chosen(config, folder),
        quantization=quantization_of(folder),
    )
    slots = plan.geometry(plan.most_micro_batches)
    check_slots_fit(slots.capacity, slots.total_bytes, plan.nodes_ledger(), machine)
    return plan


def _precision(config: EngineConfig, spec: ModelSpec, machine: Machine) -> Precision:
    """As asked for; `auto` is the checkpoint's own bfloat16 where the cores have it, else
    float32."""
    own = "bfloat16" if spec.dtype == "bfloat16" and machine.bfloat16_arithmetic else "float32"
    dtype = own if config.dtype == "auto" else config.dtype
    return Precision(dtype, config.expert_dtype, config.attention_dtype)


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
