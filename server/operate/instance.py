"""What the application knows of the instance that it serves for, beside the engine client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from megainfer.config import BLOCK_SIZE
from megainfer.frontend.condition import Phase
from megainfer.frontend.engine_client import EngineClient
from megainfer.frontend.engine_observer import EngineObserver, SeveralObserve
from megainfer.frontend.serving_options import ServingOptions
from megainfer.launch.expectation import expectation_of
from megainfer.launch.plan import Plan
from megainfer.messages.from_child import Release, Renew, Resize, UpdateWeights
from megainfer.messages.pausing import SetPause
from megainfer.messages.to_child import GetSpans, GetStats, KeepSpans
from megainfer.planner.live.expected import Outlook
from megainfer.sharing.rests import Rests
from server.http.beginnings import Beginnings
from server.http.keys import Keys
from server.http.occupancy import Occupancy
from server.openai.served_model import ServedModel
from server.operate.changes import Changes
from server.operate.health import Health, Readiness
from server.operate.metrics.experts import ExpertMap
from server.operate.metrics.exposition import Counted, Exposition
from server.operate.metrics.requests import RequestMetrics
from server.operate.metrics.terms import Expectation
from server.operate.nodes import NodeBoard, board_of
from server.operate.rollouts import Rollouts
from server.operate.siblings import Address, alone
from server.operate.traces import Tracer

if TYPE_CHECKING:
    from server.operate.spans.export import SpanExport

TICKETS = 2**32
"""More than one API server will ever need."""

Ask = Callable[
    [GetStats | KeepSpans | GetSpans | Resize | Release | Renew | UpdateWeights | SetPause], object
]


@dataclass
class Instance:
    """board: what nodes say. changes: of the nodes themselves. rollouts: what trainers ask. keys:
    that open it now. info: what `/server_info` tells of configuration and plan. engine_problem: why
    no request is even taken, in words for anybody. spans: where they go, None without a collector.
    """

    options: ServingOptions
    board: NodeBoard
    occupancy: Occupancy
    beginnings: Beginnings
    health: Health
    readiness: Readiness
    tracer: Tracer
    counted: Counted
    exposition: Exposition
    info: Mapping[str, Any]
    changes: Changes
    rollouts: Rollouts
    keys: Keys
    engine_problem: Callable[[], str | None]
    spans: "SpanExport | None" = None


@dataclass(frozen=True)
class Surroundings:
    """Where the nodes are and how to ask them; by default there is nobody to ask. plan: by which
    they run."""

    board: NodeBoard
    plan: Plan | None = None
    ask: Ask = lambda message: None
    processes: Callable[[], int] = lambda: 0
    siblings: Address = field(default_factory=alone)
    experts: ExpertMap = field(default_factory=lambda: ExpertMap((), ()))
    cache_config: tuple[tuple[str, str], ...] = ()
    info: tuple[tuple[str, Any], ...] = ()
    outlook: Outlook | None = None


def surroundings_of(plan: Plan, options: ServingOptions, ask: Ask, server: int = 0) -> Surroundings:
    """Of an instance that runs a plan; server: this API server's number."""
    placement, board = plan.placement, board_of(plan, options.patience)
    return Surroundings(
        board=board,
        plan=plan,
        ask=ask,
        processes=(lambda: 1) if plan.config.colocated else board.num_serving,
        siblings=Address(server, options.api_servers, plan.server_name),
        experts=ExpertMap(
            tuple(plan.spec.moe_layers),
            [list(placement.held_by(node).values()) for node in range(plan.num_expert)],
        ),
        cache_config=(
            ("block_size", str(BLOCK_SIZE)),
            ("num_gpu_blocks", str(plan.num_blocks)),
            ("cache_dtype", plan.kv_cache_dtype),
            ("enable_prefix_caching", str(plan.prefix_cache)),
        ),
        info=plan_info(plan),
        outlook=outlook_of(plan, options),
    )


def outlook_of(plan: Plan, options: ServingOptions) -> Outlook | None:
    """By the hardware that was described. Raises ConfigError where its nodes' isn't."""
    if options.hardware is None:
        return None
    return expectation_of(plan, options.hardware, options.hardware_name)


def assemble(
    engine: EngineClient,
    model: ServedModel,
    options: ServingOptions,
    surroundings: Surroundings | None = None,
) -> Instance:
    """Everything in its place; the engine client is observed from now on."""
    around = surroundings or Surroundings(NodeBoard())
    occupancy = Occupancy()
    requests = RequestMetrics.over(engine.num_nodes, model.max_model_len)
    spans = _span_export(options, model)
    engine.observer = _observer(requests, spans)
    health = Health(engine, around.board, occupancy)
    cache_config = dict(around.cache_config)
    counted = Counted(
        model.names[0],
        engine,
        requests,
        around.board,
        occupancy,
        around.experts,
        cache_config,
        expectation=Expectation(around.outlook),
    )
    return Instance(
        options=options,
        board=around.board,
        occupancy=occupancy,
        beginnings=Beginnings(Rests(occupancy.others)),
        health=health,
        readiness=Readiness(engine, health, around.board, around.ask),
        tracer=Tracer(around.ask, around.processes, around.siblings.own * TICKETS),
        counted=counted,
        exposition=Exposition(counted, around.siblings),
        info=dict(around.info),
        keys=Keys(options.api_keys, options.admin_keys),
        changes=Changes(around.ask, around.siblings.own * TICKETS),
        rollouts=Rollouts(around.ask, around.plan, around.siblings.own * TICKETS),
        engine_problem=partial(_engine_problem, engine),
        spans=spans,
    )


def _engine_problem(engine: EngineClient) -> str | None:
    condition = engine.condition
    return condition.text if condition.phase in (Phase.LOADING, Phase.FAILED) else None


def _span_export(options: ServingOptions, model: ServedModel) -> "SpanExport | None":
    if options.traces_endpoint is None:
        return None
    from server.operate.spans.export import SpanExport

    return SpanExport(options.traces_endpoint, model.names[0])


def _observer(requests: RequestMetrics, spans: "SpanExport | None") -> EngineObserver:
    return requests if spans is None else SeveralObserve([requests, spans.observer])


def plan_info(plan: Plan) -> tuple[tuple[str, Any], ...]:
    """What `/server_info` tells of a plan; values are such that JSON has."""
    config = {name: getattr(plan.config, name) for name in plan.config.__dataclass_fields__}
    spec = plan.spec
    return (
        ("config", config),
        (
            "plan",
            {
                "folder": str(plan.folder),
                "architecture": spec.architecture,
                "vocab_size": spec.vocab_size,
                "layers": len(spec.layers),
                "expert_layers": len(spec.moe_layers),
                "experts": spec.num_experts,
                "experts_per_token": spec.top_k,
                "dtype": plan.dtype,
                "expert_dtype": plan.expert_dtype,
                "attention_dtype": plan.attention_dtype,
                "kv_cache_dtype": plan.kv_cache_dtype,
                "kernels": plan.kernels,
                "expert_kernels": plan.expert_kernels,
                "gpus": {name: str(gpu) for name, (gpu, _) in plan.gpu_ledgers().items()},
                "max_model_len": plan.max_model_len,
                "kv_blocks": plan.num_blocks,
                "micro_batches": plan.micro_batches or "auto",
                "attn_tp": plan.config.attn_tp,
                "ffn_tp": plan.config.ffn_tp,
                "cores": [list(assignment.cores) for assignment in plan.process_cores],
            },
        ),
    )
