"""What a model costs on hardware: FLOPs and bytes, seconds, and bytes of memory."""

from megainfer.planner.costs.attention_stage import AttentionStage
from megainfer.planner.costs.colocated_stage import ColocatedStage
from megainfer.planner.costs.expert_stage import ExpertStage
from megainfer.planner.costs.model import ModelCosts
from megainfer.planner.costs.popularity import Popularity
from megainfer.planner.costs.road import Road
from megainfer.planner.costs.stage_time import Time
from megainfer.planner.costs.step import Contexts, Step
from megainfer.planner.costs.straggling import expected_maximum

__all__ = [
    "AttentionStage",
    "ColocatedStage",
    "Contexts",
    "ExpertStage",
    "ModelCosts",
    "Popularity",
    "Road",
    "Step",
    "Time",
    "expected_maximum",
]
