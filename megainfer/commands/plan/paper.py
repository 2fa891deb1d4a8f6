"""`megainfer plan --paper`: Algorithm 1 as it was published."""

import json

from rich.console import Console

from megainfer.commands.plan.model import stages_of
from megainfer.commands.plan.options import LoadOptions, ReportOptions, WeightOptions
from megainfer.commands.plan.tables import role, table
from megainfer.commands.plan.values import parse_inventory
from megainfer.planner.algorithm_1 import Algorithm1, PaperPlan
from megainfer.planner.hardware import paper_devices
from megainfer.planner.search.workload import Prefill, Workload


def print_paper(
    model: str,
    gpus: str | None,
    load: LoadOptions,
    weights: WeightOptions,
    report: ReportOptions,
) -> None:
    """The best plan of each pair of kinds of GPUs, best first. Raises MegaInferError."""
    known = paper_devices()
    devices = parse_inventory(gpus, known).devices if gpus else tuple(known.values())
    workload = Workload(load.input_tokens, load.output_tokens, Prefill.ELSEWHERE)
    algorithm = Algorithm1(stages_of(model, weights), workload, load.target().tpot_seconds)
    plans = algorithm.plans(devices)[: report.top]
    if report.json:
        print(json.dumps([_plan(plan) for plan in plans], indent=1))
        return
    names = ("", "attention", "experts", "m", "batch", "T_a", "T_e", "T_c", "T_total", "/GPU")
    rows = [
        (
            str(place),
            role(plan.deployment.attention),
            role(plan.deployment.experts),
            str(plan.deployment.micro_batches),
            str(plan.deployment.batch),
            *(f"{seconds * 1e6:.0f}" for seconds in (plan.t_a, plan.t_e, plan.t_c)),
            f"{plan.total_seconds * 1e3:.1f}",
            f"{plan.per_gpu:.0f}",
            f"{plan.per_price:.0f}",
        )
        for place, plan in enumerate(plans, start=1)
    ]
    console = Console(highlight=False)
    console.print(
        f"{model} by Algorithm 1 of MegaScale-Infer: {workload.input_tokens} tokens in, "
        f"{workload.output_tokens} out; stages in us, T_total in ms",
        markup=False,
    )
    console.print(table((*names, "/price"), rows))


def _plan(plan: PaperPlan) -> dict[str, object]:
    deployment = plan.deployment
    return {
        "attention": {
            "device": deployment.attention.device.name,
            "tp": deployment.attention.tp,
            "nodes": deployment.attention.count,
        },
        "experts": {
            "device": deployment.experts.device.name,
            "tp": deployment.experts.tp,
            "nodes": deployment.experts.count,
        },
        "micro_batches": deployment.micro_batches,
        "batch": deployment.batch,
        "seconds": {
            "attention_layer": plan.t_a,
            "expert_layer": plan.t_e,
            "transfer": plan.t_c,
            "total": plan.total_seconds,
        },
        "tokens_per_second": {
            "instance": plan.tokens_per_second,
            "gpu": plan.per_gpu,
            "price": plan.per_price,
        },
    }
