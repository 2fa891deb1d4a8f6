"""All operations in plain torch: slow where it has to be, obvious everywhere."""

from megainfer.compute.reference.kernels.attention import (
    Scoring,
    decode_attention,
    prefill_attention,
    write_cache,
)
from megainfer.compute.reference.kernels.delta_net import (
    causal_convolution,
    decays,
    delta_rule,
    unit_length,
)
from megainfer.compute.reference.kernels.edits import edit
from megainfer.compute.reference.kernels.experts import (
    Groups,
    Network,
    choices_of_each,
    every_feed_forward,
    feed_forward,
    group_by_expert,
    grouped_feed_forward,
)
from megainfer.compute.reference.kernels.indexer import choose_positions
from megainfer.compute.reference.kernels.latent_attention import (
    absorbed_attention,
    expanded_attention,
    gather_latents,
)
from megainfer.compute.reference.kernels.norms import rms_norm
from megainfer.compute.reference.kernels.rotary import (
    RopeFrequencies,
    rope_frequencies,
    rotary_table,
    rotate,
)
from megainfer.compute.reference.kernels.routing import (
    Homes,
    Routing,
    expert_homes,
    padded_plan,
    route,
    scatter_plan,
)
from megainfer.compute.reference.kernels.sampling import best, draw, kept_probabilities
from megainfer.compute.reference.kernels.scores import scores

__all__ = [
    "Groups",
    "Homes",
    "Network",
    "RopeFrequencies",
    "Routing",
    "Scoring",
    "absorbed_attention",
    "best",
    "causal_convolution",
    "choices_of_each",
    "choose_positions",
    "decays",
    "decode_attention",
    "delta_rule",
    "draw",
    "edit",
    "every_feed_forward",
    "expanded_attention",
    "expert_homes",
    "feed_forward",
    "gather_latents",
    "group_by_expert",
    "grouped_feed_forward",
    "kept_probabilities",
    "padded_plan",
    "prefill_attention",
    "rms_norm",
    "rope_frequencies",
    "rotary_table",
    "rotate",
    "route",
    "scatter_plan",
    "scores",
    "unit_length",
    "write_cache",
]
