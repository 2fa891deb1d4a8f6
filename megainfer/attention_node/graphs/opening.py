"""Whether an attention node's stages are recorded, and for which steps."""

from typing import TYPE_CHECKING

from megainfer.attention_node.graphs.buckets import buckets_of
from megainfer.attention_node.graphs.model import GraphedModel
from megainfer.attention_node.model import AttentionModel
from megainfer.compute.kv_cache import KVCache
from megainfer.device import OnGraph

if TYPE_CHECKING:  # which knows of sampling, servers and whatever else there is
    from megainfer.launch.plan import Plan


def with_graphs(
    plan: "Plan", model: AttentionModel, kv: KVCache, on_graph: OnGraph
) -> AttentionModel | GraphedModel:
    """The model with its stages recorded where the plan has room for that; else itself."""
    most_bytes = plan.attention_ledger().of("graphs")
    if not most_bytes:
        return model
    rows = min(plan.config.max_num_seqs, plan.config.max_num_batched_tokens)
    buckets = buckets_of(rows, plan.max_model_len)
    return GraphedModel(model, kv, buckets, most_bytes, plan.placement, on_graph)
