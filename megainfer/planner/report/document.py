"""A plan as a JSON document: all that the tables show, in seconds, bytes and tokens a second."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megainfer.errors import ConfigError, cited
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.question import Planned, Tried
from megainfer.planner.rehearsal import Rehearsal
from megainfer.planner.report.served import Served, served
from megainfer.planner.search.deployment import Nodes
from megainfer.planner.search.planning import Front
from megainfer.planner.search.prediction import Prediction
from megainfer.small_file import read_small_text

VERSION = 1
MAX_BYTES = 16 * 2**20


def start_of(planned: Planned, plan: Prediction) -> Served:
    """How one of its plans is started."""
    return served(planned.model, plan.deployment, planned.precision, planned.workload)


def document(planned: Planned, front: Front | None = None) -> dict[str, Any]:
    """The JSON object. Key names carry units."""
    whole: dict[str, Any] = {
        "version": VERSION,
        "model": planned.model,
        "precision": {
            "dtype": planned.precision.dtype,
            "experts": planned.precision.expert_dtype,
            "attention": planned.precision.attention_dtype,
            "kv_cache": planned.precision.cache_dtype,
        },
        "workload": {
            "input_tokens": planned.workload.input_tokens,
            "output_tokens": planned.workload.output_tokens,
            "prefill": planned.workload.prefill.value,
            "chunk": planned.workload.chunk,
            "spread": asdict(planned.workload.spread),
        },
        "inventory": {device.name: count for device, count in planned.inventory.stock},
        "target": asdict(planned.target),
        "planned_for": {
            "apart": asdict(planned.apart.target),
            "colocated": asdict(planned.together.target),
        },
        "objective": planned.objective.value,
        "plans": _plans(planned, planned.apart),
        "colocated": _plans(planned, planned.together),
        "verdict": {
            "apart_by": planned.predicted.ratio,
            "apart_by_simulated": planned.simulated_ratio,
            "sentence": planned.verdict.sentence,
        },
    }
    if front is not None:
        whole["front"] = {
            "apart": [_point(plan) for plan in front.apart],
            "colocated": [_point(plan) for plan in front.together],
        }
    return whole


def _plans(planned: Planned, kind: Tried) -> list[dict[str, Any]]:
    return [_plan(planned, plan, kind.rehearsal(at)) for at, plan in enumerate(kind.plans)]


def _plan(planned: Planned, plan: Prediction, rehearsal: Rehearsal | None) -> dict[str, Any]:
    deployment = plan.deployment
    attention_idle, expert_idle = plan.pace.idle()
    start = start_of(planned, plan)
    return {
        "together": deployment.together,
        "attention": _nodes(deployment.attention),
        "experts": {**_nodes(deployment.experts), "spares": deployment.experts.spares},
        "micro_batches": deployment.micro_batches,
        "rows": deployment.rows,
        "batch": deployment.batch,
        "replicas": deployment.replicas,
        "devices": deployment.devices,
        "seconds": {
            "attention_layer": _time(plan.stages.attention),
            "expert_layer": _time(plan.stages.experts),
            "dispatch": _time(plan.stages.dispatch),
            "combine": _time(plan.stages.combine),
            "outside_layers": _time(plan.stages.outside),
            "between_tokens": plan.tpot_seconds,
            "first_token": plan.ttft_seconds,
        },
        "moe_layers": plan.layers,
        "idle": {"attention": attention_idle, "experts": expert_idle},
        "bound": plan.bound,
        "limit": plan.limit.value if plan.limit else None,
        "tokens_per_second": {
            "all": plan.tokens_per_second,
            "instance": plan.instance_tokens_per_second,
            "gpu": plan.per_gpu,
            "price": plan.per_price,
            "watt": plan.per_watt,
            "user": plan.per_user,
        },
        "memory_bytes": [dict(ledger.lines) for ledger in plan.memory],
        "simulated": _rehearsal(rehearsal),
        "serve": {
            "options": dict(start.options),
            "command": start.command,
            "refusals": list(start.refusals),
        },
    }


def _nodes(nodes: Nodes) -> dict[str, Any]:
    return {"device": nodes.device.name, "tp": nodes.tp, "nodes": nodes.count}


def _time(time: Time) -> dict[str, float]:
    return {"total": time.total, **{name: seconds for name, seconds in time.parts if seconds}}


def _point(plan: Prediction) -> dict[str, Any]:
    return {
        "per_user": plan.per_user,
        "per_gpu": plan.per_gpu,
        "per_price": plan.per_price,
        "per_watt": plan.per_watt,
        "deployment": plan.deployment.describe(),
    }


def _rehearsal(rehearsal: Rehearsal | None) -> dict[str, Any] | None:
    if rehearsal is None:
        return None
    whole = asdict(rehearsal)
    del whole["spans"]
    if math.isinf(rehearsal.tpot_seconds):  # Nothing was made, and JSON knows no infinity.
        whole["tpot_seconds"] = None
    whole["nodes"] = dict(zip(("attention", "experts"), rehearsal.nodes, strict=True))
    return whole


def read_served(path: Path) -> Mapping[str, Any]:
    """The options of the file's first plan that can be started. Raises ConfigError: not such a
    file, or none of its plans is served yet, and why."""
    try:
        whole = json.loads(read_small_text(path, MAX_BYTES))
        version = whole["version"]
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise ConfigError(
            f"--plan {path} isn't what `megainfer plan --json` writes: {error!r:.200}"
        ) from error
    if version != VERSION:
        raise ConfigError(f"--plan {path} has version {cited(version)}, this program {VERSION}")
    try:
        starts = [plan["serve"] for plan in _best_first(whole)]
        chosen = next((start for start in starts if not start["refusals"]), None)
        refusals = [str(text) for start in starts[:1] for text in start["refusals"]]
        options = chosen and {str(name): value for name, value in chosen["options"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"--plan {path} lacks a part of a plan: {error!r:.200}") from error
    if options is None:
        why = "; ".join(refusals) or "it holds no plan"
        raise ConfigError(f"--plan {path} can't be started: {why}")
    return options


def _best_first(whole: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Plans of the kind that won, as simulated where both were, then those of the other."""
    apart, together = list(whole["plans"]), list(whole["colocated"])
    verdict = whole["verdict"]
    ratio = verdict.get("apart_by_simulated")
    ratio = verdict["apart_by"] if ratio is None else ratio
    return together + apart if ratio is not None and ratio < 1 else apart + together
