"""From MODEL to what its stages cost."""

from megainfer.commands.plan.options import WeightOptions
from megainfer.planner.search.model_stages import ModelStages


def stages_of(model: str, weights: WeightOptions) -> ModelStages:
    """Of a shape's name, a folder or a hub id; only small files are read. Raises MegaInferError."""
    from megainfer.model_folder.resolve import resolve_config
    from megainfer.models.registry import load_spec
    from megainfer.models.spec import MoESpec
    from megainfer.planner.costs import ModelCosts, Popularity
    from megainfer.planner.shapes import named_shape

    precision = weights.precision()
    spec = load_spec(named_shape(model) or resolve_config(model), weights.hf_overrides)
    moe = spec.layers[spec.first_moe_layer].ffn
    assert isinstance(moe, MoESpec)
    return ModelStages(ModelCosts.of(spec, precision, Popularity.of(moe.router, weights.skew)))
