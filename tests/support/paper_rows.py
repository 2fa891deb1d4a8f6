"""MegaScale-Infer's evaluation (arXiv 2504.02263) as the planner predicts it."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from megainfer.compute.selection import Precision
from megainfer.models.registry import load_spec
from megainfer.planner import shapes
from megainfer.planner.costs import ModelCosts
from megainfer.planner.hardware import Device, Efficiency, Utilisation, paper_devices
from megainfer.planner.search.deployment import Deployment, Nodes
from megainfer.planner.search.inventory import Inventory
from megainfer.planner.search.model_stages import ModelStages
from megainfer.planner.search.planning import Answer, Planner
from megainfer.planner.search.prediction import Prediction
from megainfer.planner.search.space import Space
from megainfer.planner.search.workload import Objective, Prefill, Target, Workload

MODELS = ("mixtral-8x22b", "dbrx", "scaled-moe")
KINDS = ("A800", "H800", "H20", "L20", "L40S")
MEDIANS = Workload(571, 159, Prefill.ELSEWHERE)
"""Of its requests; it measures decoding, prompts are computed on machines of their own."""
LIMIT = Target(0.15)
GPUS = 64
"""Of each kind."""

MORE_MICRO_BATCHES = {"mixtral-8x22b": 1.10, "dbrx": 1.28, "scaled-moe": 1.38}
"""Throughput with 3 micro-batches over that with 2, as published; with 2 over 1: about 1.9."""
SECOND_MICRO_BATCH = 1.9
BEST_REPLICAS = 8
"""Attention replicas with which DBRX's throughput a GPU is best, as published."""

FULL = Utilisation.constant(1.0)
IDEAL = Efficiency({"any": FULL}, {"any": FULL}, {"any": FULL}, FULL, FULL, FULL, FULL, FULL, 0.0)


@dataclass(frozen=True)
class PaperRows:
    """One model. ideal: every device reaches all of its published rates, and launching takes no
    time: all that the paper's table says. Else with the curves of `table.toml`, which measurements
    gave."""

    name: str
    ideal: bool

    @cached_property
    def devices(self) -> dict[str, Device]:
        table = paper_devices()
        if not self.ideal:
            return table
        return {name: replace(device, efficiency=IDEAL) for name, device in table.items()}

    @cached_property
    def stages(self) -> ModelStages:
        spec = load_spec(Path(shapes.__file__).parent / self.name)
        return ModelStages(ModelCosts.of(spec, Precision("bfloat16")))

    def planner(self, kinds: tuple[str, ...], space: Space | None = None) -> Planner:
        inventory = Inventory(tuple((self.devices[kind], GPUS) for kind in kinds))
        return Planner.of(self.stages, inventory, MEDIANS, space)

    def answer(self, kinds: tuple[str, ...], objective: Objective) -> Answer:
        """The best plans with 64 GPUs of each of these kinds."""
        return self.planner(kinds).plan(LIMIT, objective, top=1)

    def tensor_parallel(self, kind: str) -> Prediction:
        """What its baselines are nearest to: one server of 8, or two where the model doesn't fit,
        with tensor parallelism alone, at the largest batch in time."""
        for tp in (8, 16):
            planner = self.planner((kind,), Space(tps=(tp,), most_rows=4096))
            nodes = Nodes(self.devices[kind], tp, 1)
            alone = Deployment(nodes, nodes, 1, 1, together=True)
            sized = (replace(alone, rows=rows) for rows in reversed(planner.space.rows))
            predictor = planner.predictor
            fitting = (plan for plan in sized if predictor.limit(plan, LIMIT) is None)
            if (largest := next(fitting, None)) is not None:
                return predictor.prediction(largest, None)
        raise AssertionError(f"{self.name} fits no two servers of {kind}")

    def by_micro_batches(self, tp: int = 2) -> dict[int, float]:
        """Tokens a second with 1 to 3 micro-batches as large as in the best plan on Ampere whose
        attention nodes have `tp` GPUs."""
        planner = self.planner(("A800",))
        plans = (plan.deployment for plan in planner.plan(LIMIT, Objective.GPU, top=8).apart)
        best = next(plan for plan in plans if plan.attention.tp == tp)
        predictor = planner.predictor
        return {
            m: predictor.prediction(replace(best, micro_batches=m), None).instance_tokens_per_second
            for m in (1, 2, 3)
        }

    def by_replicas(self, most: int, tp: int = 2, rows: int = 256) -> dict[int, float]:
        """Tokens a second and GPU by attention replicas on Ampere: nodes of both roles with `tp`
        GPUs, one expert a node, 3 micro-batches of `rows` on each attention node."""
        device = self.devices["A800"]
        predictor = self.planner(("A800",)).predictor
        experts = Nodes(device, tp, self.stages.num_experts)
        return {
            count: predictor.prediction(
                Deployment(Nodes(device, tp, count), experts, 3, rows), None
            ).per_gpu
            for count in range(1, most + 1)
        }


@cache
def paper_rows(name: str, ideal: bool = False) -> PaperRows:
    """What one has computed, others find."""
    return PaperRows(name, ideal)
