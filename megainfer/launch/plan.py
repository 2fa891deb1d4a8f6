"""From a wish to a plan: what would run where, and whether it fits; nothing is started here."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from megainfer.compute.selection import Precision, check_precision
from megainfer.config import (
    BLOCK_SIZE,
    MAX_MICRO_BATCHES,
    MAX_TUNED_MICRO_BATCHES,
    EngineConfig,
)
from megainfer.frontend.generation_config import GenerationDefaults
from megainfer.launch.choices import (
    choose_cores,
    choose_kernels,
    choose_max_model_len,
    choose_micro_batches,
    choose_precision,
    most_nodes,
    stored_experts,
)
from megainfer.launch.devices import Devices, NodeGpus, NumberedGpu, choose_devices
from megainfer.launch.fit import (
    beside_weights,
    check_slots_fit,
    experts_on_the_move,
    fitting_blocks,
    overhead_of,
)
from megainfer.launch.gpu_memory import GpuNeeds, check_gpus_fit, fitting_gpu_blocks
from megainfer.launch.hosts.places import Places
from megainfer.launch.machine import Machine
from megainfer.launch.ranks.checks import check_ranks
from megainfer.m2n.geometry import Geometry
from megainfer.m2n.roads import PortOptions, Road, road_of_hosts, road_on_a_host
from megainfer.memory import Ledger, attention_node, expert_node, routing_bytes
from megainfer.messages.message import Role
from megainfer.models.quantization import QuantizationSpec, quantization_of
from megainfer.models.registry import load_spec
from megainfer.models.spec import ModelSpec
from megainfer.planner.profiles import profile_rows
from megainfer.ranks.layout import HalfLayout, RowsLayout
from megainfer.sharing.budgets import BudgetOptions, Budgets
from megainfer.tls.peers import TlsFiles
from megainfer.topology import (
    CoreAssignment,
    Placement,
    Shard,
    contiguous_placement,
    have_own_cores,
)

SPIN_SECONDS = 1e-3
"""How long a node looks for messages before it sleeps, at most, where it has a core of its own."""
LOGIT_ROWS = 64
"""Whose logits the ranks of an attention node compute at a time."""
SHARED_BY_RANKS = "shared by ranks"


@dataclass(frozen=True)
class Plan:
    """A resolved deployment; every process of it works from the same one.

    cores: one assignment a node, attention nodes first, then expert nodes; a single one when
    colocated. micro_batches: m where it needs no measurement, else None. token: a random name that
    keeps this instance's sockets apart from any other's. m2n_key: a secret, by which its nodes know
    each other over a network. m2n_tls: by what they show certificates there, as each host has it.
    kernels: of attention nodes, beside those of expert nodes. generation: end tokens, and sampling
    for what a request leaves out. quantization: of the weights on disk. places: where nodes are
    that agents start on several hosts; None: all are on this one. front_token: in place of `token`
    where a node of another host looks for front ends. rank_cores: as `cores`, of each rank, where
    ranks of some node are on several hosts.
    """

    config: EngineConfig
    folder: Path
    spec: ModelSpec
    placement: Placement
    dtype: str
    expert_dtype: str
    attention_dtype: str
    kv_cache_dtype: str
    devices: Devices
    kernels: str
    expert_kernels: str
    max_model_len: int
    num_blocks: int
    cores: tuple[CoreAssignment, ...]
    micro_batches: int | None
    token: str
    generation: GenerationDefaults
    quantization: QuantizationSpec | None
    m2n_key: str = field(repr=False)
    m2n_tls: TlsFiles | None = None
    places: Places | None = None
    front_token: str = ""
    rank_cores: tuple[tuple[CoreAssignment, ...], ...] = ()

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
        return f"ipc://@megainfer-{self.front_token or self.token}-front-{server}-{incarnation}"

    def server_name(self, server: int) -> str:
        """The abstract socket on which API servers ask each other."""
        return f"megainfer-{self.token}-server-{server}"

    @property
    def most_attention(self) -> int:
        """Attention nodes that there may be once it serves."""
        most = most_nodes(self.config.max_attn_gpus, self.num_attention, self.config.colocated)
        return len(self.devices.attention) or most

    @property
    def most_expert(self) -> int:
        """Expert nodes that there may be once it serves: none without an expert."""
        most = most_nodes(self.config.max_ffn_gpus, self.num_expert, self.config.colocated)
        return min(len(self.devices.experts) or most, self.spec.num_experts)

    def cores_of_attention(self, node: int, rank: int = 0) -> CoreAssignment:
        """One that joins later shares another's; the ranks of a node share what it has."""
        if self.config.colocated:
            return self.cores[0]
        return self._cores_at(node, rank, self.config.attn_tp)

    def cores_of_expert(self, node: int, rank: int = 0) -> CoreAssignment:
        """As `cores_of_attention`."""
        if self.config.colocated:
            return self.cores[0]
        return self._cores_at(self.num_attention + node, rank, self.config.ffn_tp)

    def _cores_at(self, number: int, rank: int, ranks: int) -> CoreAssignment:
        """number: of a node among all."""
        number %= len(self.cores)
        if not self.rank_cores:
            return self.cores[number].shared_by(ranks)[rank]
        own = self.rank_cores[number]  # fewer where it joined later, and shares another role's
        return own[rank % len(own)]

    def ranks(self, role: Role) -> int:
        """Processes of each node of this role."""
        return {Role.ATTENTION: self.config.attn_tp, Role.EXPERT: self.config.ffn_tp}.get(role, 1)

    @property
    def process_cores(self) -> tuple[CoreAssignment, ...]:
        """Of each process to begin with: of the ranks of attention nodes, then of expert nodes; a
        single one when colocated."""
        if self.config.colocated:
            return self.cores
        attention = (
            self.cores_of_attention(node, rank)
            for node in range(self.num_attention)
            for rank in range(self.config.attn_tp)
        )
        experts = (
            self.cores_of_expert(node, rank)
            for node in range(self.num_expert)
            for rank in range(self.config.ffn_tp)
        )
        return (*attention, *experts)

    def cores_of(self, role: Role, node: int, rank: int = 0) -> CoreAssignment:
        """Of a rank of a node of either role."""
        of_role = self.cores_of_attention if role is Role.ATTENTION else self.cores_of_expert
        return of_role(node, rank)

    @property
    def spin_seconds(self) -> float:
        """How long a waiting process may keep its core busy: not where others would need it, nor on
        the road between hosts, whose own threads would."""
        alone = self.places is None and have_own_cores(self.process_cores)
        return SPIN_SECONDS if alone else 0.0

    @property
    def half_layout(self) -> HalfLayout:
        """What the ranks of an attention node share."""
        config, spec = self.config, self.spec
        return HalfLayout(
            ranks=config.attn_tp,
            rows=config.max_num_batched_tokens,
            hidden_size=spec.hidden_size,
            logit_rows=min(LOGIT_ROWS, config.max_num_batched_tokens),
            vocabulary=-(-spec.vocab_size // config.attn_tp),
            sequences=min(config.max_num_seqs, config.max_num_batched_tokens),
            blocks=-(-self.max_model_len // BLOCK_SIZE),
            dtype=self.dtype if self.devices.attention else "float32",
        )

    @property
    def rows_layout(self) -> RowsLayout:
        """What the ranks of an expert node share: all rows that it may be sent at a time."""
        rows = self.most_attention * self.config.max_num_batched_tokens
        return self._rows_layout(rows)

    def _rows_layout(self, rows: int) -> RowsLayout:
        spec = self.spec
        return RowsLayout(self.config.ffn_tp, rows, spec.hidden_size, spec.top_k, self.dtype)

    @property
    def profiled_rows(self) -> list[int]:
        """The sizes of micro-batches whose stages are measured for the choice of m."""
        return profile_rows(min(self.config.max_num_seqs, self.config.max_num_batched_tokens))

    @property
    def road(self) -> Road:
        """What carries the messages between its nodes."""
        joins = road_on_a_host if self.places is None else road_of_hosts
        kind, groups = joins(
            self.config.m2n, bool(self.devices.attention), bool(self.devices.experts)
        )
        options = PortOptions(self.spin_seconds)
        host = self.config.m2n_host
        return Road(kind, self.token, options, self.m2n_key, host, groups, self.m2n_tls)

    @property
    def payloads(self) -> str:
        """Whose memory M2N's payloads are in, as `Geometry` says it."""
        road = self.road
        return "device" if road.kind == "ipc" or road.groups == "nccl" else "host"

    def slot_bytes(self, micro_batches: int) -> int:
        """Of M2N in the host's memory, all nodes together. On `dist`, which may be some of
        `mixed`, there is as much again that they send from, in place of each other's slots."""
        once = self.geometry(micro_batches).total_bytes
        return 2 * once if self.road.kind in ("dist", "mixed") else once

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
            payloads=self.payloads,
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
    def routing_bytes(self) -> int:
        """Of a token, what its gates chose, where that is kept; else 0."""
        return routing_bytes(self.spec) if self.config.enable_return_routed_experts else 0

    @property
    def precision(self) -> Precision:
        return Precision(self.dtype, self.expert_dtype, self.attention_dtype, self.kv_cache_dtype)

    def attention_ledger(self, node: int = 0, rank: int = 0) -> Ledger:
        """What one takes where it computes, all of its ranks on the CPU or this one on its GPU,
        without slots on the host; if colocated, for both roles."""
        gpu, every = self.devices.of(Role.ATTENTION, node, rank), Shard.each(self.config.attn_tp)
        shards = every if gpu is None else every[rank : rank + 1]
        own = attention_node(self.spec, self.precision, self.num_blocks, self.num_states, shards)
        if self.routing_bytes:
            kept = self.num_blocks * BLOCK_SIZE * self.routing_bytes
            own += Ledger((("routed experts", kept),))
        own += self.shared_by_ranks(Role.ATTENTION)
        if gpu is None:
            return own
        needs = self._gpu_needs
        if self.config.colocated:
            return own + needs.colocated(gpu)
        return own + needs.attention(gpu, shards[0])

    def expert_ledger(self, node: int, rank: int = 0) -> Ledger:
        """As `attention_ledger`."""
        gpu = self.devices.of(Role.EXPERT, node, rank)
        own = expert_node(
            self.spec,
            self.precision,
            self.placement.num_slots(node),
            experts_on_the_move(self.config),
            on_gpu=gpu is not None,
            ranks=1 if gpu is None else self.config.ffn_tp,
        )
        own += self.shared_by_ranks(Role.EXPERT)
        if gpu is None or self.config.colocated:
            return own
        return own + self._gpu_needs.experts(gpu, Shard(rank, self.config.ffn_tp))

    def shared_by_ranks(self, role: Role) -> Ledger:
        """Of one node: what its ranks share of the host's memory, as far as rows of the nodes to
        begin with take some there; those of ranks on GPUs are never there. On a host without the
        first rank each has as much for itself."""
        if self.ranks(role) == 1 or self.devices.of(role, 0) is not None:
            return Ledger()
        if role is Role.ATTENTION:
            return Ledger(((SHARED_BY_RANKS, self.half_layout.total_bytes),))
        rows = self.num_attention * self.config.max_num_batched_tokens
        return Ledger(((SHARED_BY_RANKS, self._rows_layout(rows).total_bytes),))

    def nodes_ledger(self) -> Ledger:
        """What all nodes on the CPU together take of memory, beside M2N's slots."""
        total = Ledger()
        if not self.devices.attention:
            total += self.attention_ledger() * self.num_attention
        if not self.devices.experts:
            total = sum(map(self.expert_ledger, range(self.num_expert)), start=total)
        return total

    @property
    def on_cpu(self) -> bool:
        """Whether some node computes on the CPU."""
        return not (self.devices.attention and self.devices.experts)

    def gpu_ledgers(self) -> dict[str, tuple[NumberedGpu, Ledger]]:
        """By their names, such as `expert 0` or, of one of several ranks, `expert 0.1`: where
        processes on GPUs are, and what each takes there."""
        attention = self.devices.attention[: self.num_attention]
        experts = self.devices.experts[: self.num_expert]
        told = _by_rank("attention", attention, self.attention_ledger)
        return told | _by_rank("expert", experts, self.expert_ledger)

    @property
    def _gpu_needs(self) -> GpuNeeds:
        m, road = self.most_micro_batches, self.road
        return GpuNeeds(
            spec=self.spec,
            precision=self.precision,
            geometry=None if self.config.colocated else self.roomy_geometry(m),
            rows=self.config.max_num_batched_tokens,
            micro_batches=m,
            sources=self.most_attention,
            max_num_seqs=self.config.max_num_seqs,
            eager=self.config.enforce_eager,
            groups=road.groups == "nccl",
            mixed=road.kind == "mixed",
            logits=self.half_layout.logit_rows * self.half_layout.vocabulary,
        )

    def whole_ledger(self) -> Ledger:
        """The same with M2N's slots, for as many micro-batches as may be chosen."""
        slots = self.slot_bytes(self.most_micro_batches)
        return self.nodes_ledger() + Ledger((("M2N", slots),))


def make_plan(
    config: EngineConfig,
    folder: Path,
    machine: Machine,
    budgets: BudgetOptions | None = None,
    servers: int = 0,
    sites: tuple[Places, Devices] | None = None,
) -> Plan:
    """Check the wish against the model in `folder` and a machine, the one that it is to run on.

    budgets: of the requests that so many API servers take; without them there are none. sites: of
    nodes on several hosts, whose machines are this one together.

    Raises ModelError for the folder, ConfigError (naming the values and what would fit) for the
    rest.
    """
    spec = load_spec(folder, config.hf_overrides)
    placement = contiguous_placement(
        spec.num_experts, config.ffn_gpus, spec.moe_layers, config.expert_replicas
    )
    places, devices = (None, choose_devices(config, machine)) if sites is None else sites
    kernels = choose_kernels(config, devices)
    quantization = quantization_of(folder)
    stored = stored_experts(spec, kernels, quantization, config.ffn_tp)
    precision = choose_precision(config, spec, machine, devices, stored)
    check_precision(kernels, precision)
    check_ranks(config, spec, devices, kernels[0])
    cores = choose_cores(config, kernels, devices, machine)
    plan = Plan(
        config=config,
        folder=folder,
        spec=spec,
        placement=placement,
        dtype=precision.dtype,
        expert_dtype=precision.expert_dtype,
        attention_dtype=precision.attention_dtype,
        kv_cache_dtype=precision.cache_dtype,
        devices=devices,
        kernels=kernels[0],
        expert_kernels=kernels[1],
        max_model_len=choose_max_model_len(config, spec),
        num_blocks=0,
        cores=cores,
        micro_batches=choose_micro_batches(config, cores, devices),
        token=secrets.token_hex(16),
        m2n_key=secrets.token_hex(32),
        generation=GenerationDefaults.chosen(config, folder),
        quantization=quantization,
        places=places,
    )
    bounds = None if budgets is None else Budgets.of(budgets, plan.max_model_len)
    others = overhead_of(config, len(plan.process_cores), bounds, servers, devices).ledger
    plan = replace(plan, num_blocks=_fitting_blocks(plan, machine, others))
    slots = plan.slot_bytes(plan.most_micro_batches)
    check_slots_fit(config.max_num_batched_tokens, slots, plan.nodes_ledger(), machine)
    return plan


def _by_rank(
    name: str, nodes: Sequence[NodeGpus], ledger: Callable[[int, int], Ledger]
) -> dict[str, tuple[NumberedGpu, Ledger]]:
    """See `Plan.gpu_ledgers`."""
    return {
        f"{name} {node}" + (f".{rank}" if len(gpus) > 1 else ""): (gpu, ledger(node, rank))
        for node, gpus in enumerate(nodes)
        for rank, gpu in enumerate(gpus)
    }


def _fitting_blocks(plan: Plan, machine: Machine, others: Ledger) -> int:
    """Of one attention node's cache, wherever it is; others: what else the host's memory has."""
    config, devices, available = plan.config, plan.devices, machine.available_memory
    wish = config, plan.spec, plan.precision
    free = beside_weights(*wish, available, devices)
    nodes = [*plan.gpu_ledgers().values()]
    if devices.attention:
        caches = [*chain(*devices.attention[: plan.num_attention])]
        return fitting_gpu_blocks(*wish, plan.max_model_len, nodes, caches)
    check_gpus_fit(nodes)
    return fitting_blocks(*wish, plan.max_model_len, free, others)
