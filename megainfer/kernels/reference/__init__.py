"""All operations in plain torch: slow where it has to be, obvious everywhere."""

from megainfer.kernels.reference.attention import (
    Scoring,
    decode_attention,
    prefill_attention,
    write_cache,
)
from megainfer.kernels.reference.delta_net import (
    causal_convolution,
    decays,
    delta_rule,
    unit_length,
)
from megainfer.kernels.reference.experts import (
    Groups,
    Network,
    feed_forward,
    group_by_expert,
    grouped_feed_forward,
)
from megainfer.kernels.reference.indexer import choose_positions
from megainfer.kernels.reference.latent_attention import (
    absorbed_attention,
    expanded_attention,
    gather_latents,
)
from megainfer.kernels.reference.norms import rms_norm
from megainfer.kernels.reference.rotary import (
    RopeFrequencies,
    rope_frequencies,
    rotary_table,
    rotate,
)
from megainfer.kernels.reference.routing import (
    Homes,
    Routing,
    expert_homes,
    route,
    scatter_plan,
)
from megainfer.kernels.reference.sampling import best, choose, draw

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
    "choose",
    "choose_positions",
    "decays",
    "decode_attention",
    "delta_rule",
    "draw",
    "expanded_attention",
    "expert_homes",
    "feed_forward",
    "gather_latents",
    "group_by_expert",
    "grouped_feed_forward",
    "prefill_attention",
    "rms_norm",
    "rope_frequencies",
    "rotary_table",
    "rotate",
    "route",
    "scatter_plan",
    "unit_length",
    "write_cache",
]
